// Threads of the OpenMP runtime that the process already has; this library links none.
#pragma once

namespace dlmk {

struct OpenMP {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;  // GOMP_parallel
  int (*thread)() = nullptr;                                                // omp_get_thread_num
  int (*threads)() = nullptr;                                               // omp_get_num_threads
};

extern OpenMP openmp;

template <class F>
void call_in_team(void* body) {
  (*static_cast<F*>(body))(openmp.thread(), openmp.threads());
}

// Runs body(thread, threads) on up to `threads` threads; on the calling thread alone where there is no runtime.
template <class F>
void parallel(int threads, F body) {
  if (threads <= 1 || !openmp.parallel) {
    body(0, 1);
  } else {
    openmp.parallel(call_in_team<F>, &body, unsigned(threads), 0);
  }
}

}  // namespace dlmk
