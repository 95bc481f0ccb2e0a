// A daemon at rest beside its data should weigh little.
#pragma once

namespace skerry::client {

/// Gives back memory that was needed to start or to work and is not needed to wait: free heap pages, and the mapped code
/// pages of this program and its libraries. The kernel keeps the latter in its page cache, so what runs again is mapped
/// again at the cost of a minor fault.
void give_back_memory();

}  // namespace skerry::client
