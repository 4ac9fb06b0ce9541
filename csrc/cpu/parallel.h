// Work handed out piece by piece: the pieces are of very different lengths.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace instseg {

// Calls body(begin, end) for consecutive pieces of 0..count-1 of `piece` each. `make_body` makes
// one body, with the scratch memory that it owns, for each thread.
template <typename MakeBody>
void parallel_pieces(int64_t count, int64_t piece, const MakeBody& make_body) {
  if (count <= 0) return;
  const int64_t pieces = (count + piece - 1) / piece;
  const int64_t threads = std::min<int64_t>(pieces, torch::stable::get_num_threads());
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      auto body = make_body();
      for (int64_t p = next++; p < pieces; p = next++) {
        body(p * piece, std::min(count, (p + 1) * piece));
      }
    }
  });
}

}  // namespace instseg
