// Which BLAS this process got, and how many threads it uses; found at run time, without linking against one.
#pragma once

#include <string>

namespace skerry::trainer {

/// A sentence for the holder where matrix products are slow, with the package that mends it; empty where they are not.
std::string blas_warning();

/// Sets OpenBLAS's own thread count, where OpenBLAS is what is loaded.
void use_blas_threads(int threads);

}  // namespace skerry::trainer
