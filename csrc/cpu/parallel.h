// Threads of the OpenMP runtime that the process already has; this library links none.
#pragma once

#include <atomic>
#include <new>

namespace dlmk {

struct OpenMP {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;  // GOMP_parallel
  int (*thread)() = nullptr;                                                // omp_get_thread_num
  int (*threads)() = nullptr;                                               // omp_get_num_threads
};

extern OpenMP openmp;

template <class F>
struct Team {
  F* body;
  std::atomic<bool> out_of_memory{false};

  static void work(void* self) {
    Team& team = *static_cast<Team*>(self);
    try {
      (*team.body)(openmp.thread(), openmp.threads());
    } catch (const std::bad_alloc&) {  // nothing may be thrown through the runtime
      team.out_of_memory = true;
    }
  }
};

// Runs body(thread, threads) on up to `threads` threads; on the calling thread alone where there is no runtime.
template <class F>
void parallel(int threads, F body) {
  if (threads <= 1 || !openmp.parallel) return body(0, 1);
  Team<F> team{&body};
  openmp.parallel(Team<F>::work, &team, unsigned(threads), 0);
  if (team.out_of_memory) throw std::bad_alloc();
}

}  // namespace dlmk
