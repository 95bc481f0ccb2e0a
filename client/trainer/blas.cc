#include "client/trainer/blas.h"

#include <dlfcn.h>

#include <climits>
#include <cstdlib>

namespace skerry::trainer {

std::string blas_warning() {
  void* const product = dlsym(RTLD_DEFAULT, "sgemm_");
  Dl_info info{};
  // A LibTorch with a BLAS inside (the PyTorch wheel with MKL) shows none: nothing to say then.
  if (product == nullptr || dladdr(product, &info) == 0 || info.dli_fname == nullptr) return "";
  char resolved[PATH_MAX];
  const std::string path = realpath(info.dli_fname, resolved) != nullptr ? resolved : info.dli_fname;
  // Debian's reference BLAS lives in a folder of its own: /usr/lib/ARCH/blas/libblas.so.3.x
  if (path.find("/blas/libblas.so") == std::string::npos) return "";
  return "matrix products run on the reference BLAS (" + path +
         "), 60 times slower than OpenBLAS: install the package libopenblas0-pthread";
}

void use_blas_threads(int threads) {
  using SetThreads = void (*)(int);
  if (const auto set = reinterpret_cast<SetThreads>(dlsym(RTLD_DEFAULT, "openblas_set_num_threads"))) set(threads);
}

}  // namespace skerry::trainer
