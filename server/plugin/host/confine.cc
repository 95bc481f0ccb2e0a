#include "server/plugin/host/confine.h"

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#if __has_include(<linux/landlock.h>)
#include <linux/landlock.h>
#endif

namespace skerry::plugin_host {
namespace {

std::string failure(const char* what) { return std::string(what) + ": " + std::strerror(errno); }

#if defined(SYS_landlock_create_ruleset) && defined(LANDLOCK_ACCESS_FS_EXECUTE)
// Reading below the system's libraries and nothing else, where the kernel can do that.
void allow_only_libraries() {
  landlock_ruleset_attr wanted{};
  wanted.handled_access_fs = (LANDLOCK_ACCESS_FS_MAKE_SYM << 1) - 1;  // every right of the first version
  const long rules = ::syscall(SYS_landlock_create_ruleset, &wanted, sizeof wanted, 0);
  if (rules < 0) return;  // an older kernel, or Landlock is switched off
  for (const char* path : {"/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/nix/store", "/gnu/store"}) {
    const int at = ::open(path, O_PATH | O_CLOEXEC);
    if (at < 0) continue;
    landlock_path_beneath_attr beneath{};
    beneath.allowed_access = LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_EXECUTE;
    beneath.parent_fd = at;
    (void)::syscall(SYS_landlock_add_rule, rules, LANDLOCK_RULE_PATH_BENEATH, &beneath, 0);
    ::close(at);
  }
  (void)::syscall(SYS_landlock_restrict_self, rules, 0);
  ::close(static_cast<int>(rules));
}
#else
void allow_only_libraries() {}
#endif

#if defined(__x86_64__)
constexpr std::uint32_t kArchitecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr std::uint32_t kArchitecture = AUDIT_ARCH_AARCH64;
#else
constexpr std::uint32_t kArchitecture = 0;
#endif

constexpr std::uint32_t kAllow = SECCOMP_RET_ALLOW;
constexpr std::uint32_t kRefuse = SECCOMP_RET_ERRNO | EPERM;

constexpr std::uint32_t low_half_of_argument(unsigned index) {
  return static_cast<std::uint32_t>(offsetof(seccomp_data, args) + 8 * index);  // little-endian, as both architectures are
}

constexpr int kAlwaysAllowed[] = {
    // talking to the coordinator, and saying last words
    SYS_read, SYS_write, SYS_writev, SYS_recvfrom, SYS_recvmsg, SYS_sendto, SYS_sendmsg, SYS_ppoll, SYS_close,
    // loading a library
    SYS_fstat, SYS_newfstatat, SYS_lseek, SYS_pread64, SYS_readlinkat, SYS_faccessat, SYS_statx, SYS_getcwd,
    // memory
    SYS_mmap, SYS_mprotect, SYS_munmap, SYS_mremap, SYS_madvise, SYS_brk,
    // threads that are there
    SYS_futex, SYS_set_robust_list, SYS_rseq, SYS_sched_yield, SYS_sched_getaffinity, SYS_membarrier,
    // signals to itself, the end
    SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sigaltstack, SYS_restart_syscall, SYS_exit, SYS_exit_group,
    // what anybody may know
    SYS_getpid, SYS_gettid, SYS_getuid, SYS_geteuid, SYS_getgid, SYS_getegid, SYS_uname, SYS_sysinfo, SYS_getrusage,
    SYS_getrandom, SYS_clock_gettime, SYS_clock_getres, SYS_gettimeofday, SYS_nanosleep, SYS_clock_nanosleep,
#if defined(__x86_64__)
    SYS_poll, SYS_stat, SYS_lstat, SYS_access, SYS_readlink, SYS_time, SYS_getcpu, SYS_arch_prctl,
#endif
};

// Allows `call` where its argument, masked, is `value`.
void allow_if(std::vector<sock_filter>& program, int call, unsigned argument, std::uint32_t mask, std::uint32_t value) {
  program.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<std::uint32_t>(call), 0, 5));
  program.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, low_half_of_argument(argument)));
  program.push_back(BPF_STMT(BPF_ALU | BPF_AND | BPF_K, mask));
  program.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1));
  program.push_back(BPF_STMT(BPF_RET | BPF_K, kAllow));
  program.push_back(BPF_STMT(BPF_RET | BPF_K, kRefuse));
}

}  // namespace

std::string give_up_files() {
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return failure("no_new_privs");
  if (::prctl(PR_SET_DUMPABLE, 0) != 0) return failure("dumpable");
  const rlimit nothing{0, 0};
  if (::setrlimit(RLIMIT_CORE, &nothing) != 0) return failure("core dumps");
  if (::setrlimit(RLIMIT_FSIZE, &nothing) != 0) return failure("file size");
  allow_only_libraries();
  return {};
}

std::string give_up_system_calls() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return {};  // the sanitizers' runtime makes calls of its own
#endif
  if (kArchitecture == 0) return "this processor's system calls are not known to skerry-plugin-host";
  std::vector<sock_filter> program;
  program.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, static_cast<std::uint32_t>(offsetof(seccomp_data, arch))));
  program.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, kArchitecture, 1, 0));
  program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS));
  program.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, static_cast<std::uint32_t>(offsetof(seccomp_data, nr))));
  for (const int call : kAlwaysAllowed) {
    program.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<std::uint32_t>(call), 0, 1));
    program.push_back(BPF_STMT(BPF_RET | BPF_K, kAllow));
  }
  constexpr std::uint32_t kWriting = O_ACCMODE | O_CREAT | O_TRUNC;
  allow_if(program, SYS_openat, 2, kWriting, O_RDONLY);
#if defined(__x86_64__)
  allow_if(program, SYS_open, 1, kWriting, O_RDONLY);
#endif
  allow_if(program, SYS_tgkill, 0, 0xffffffff, static_cast<std::uint32_t>(::getpid()));  // abort
  allow_if(program, SYS_prlimit64, 0, 0xffffffff, 0);
  program.push_back(BPF_STMT(BPF_RET | BPF_K, kRefuse));
  sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
  if (::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &filter) != 0) return failure("seccomp");
  return {};
}

}  // namespace skerry::plugin_host
