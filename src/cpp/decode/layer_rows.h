// The states of rows of a model that is stepped, and the step through the layers of its LSTM (one direction).
// L layers, H hidden units, F values fed back beside the token.
#pragma once

#include <vector>

#include "lstm/low_precision.h"
#include "lstm/lstm.h"

namespace fusedlstm {

// What the first layer of every row reads: W x + b of its token, and values that are fed back.
template <class T>
struct FirstInput {
  const T* table;                          // (V, 4 H_pad): W x + b of every token
  const int32_t* tokens;                   // by row
  ptrdiff_t fed = 0;                       // F
  const T* x = nullptr;                    // (rows, F)
  const T* weights = nullptr;              // panels (F, 4 H_pad)
  const LowMatrix* low_weights = nullptr;  // instead, in low precision
};

template <class T>
class LayerRows {
 public:
  // fed: F of all steps
  LayerRows(const PackedWeights<T>& lstm, ptrdiff_t capacity, ptrdiff_t fed = 0);

  // Feeds rows j < count. All threads of the team call; `input` is complete on entry; ends with a barrier.
  void step_share(Team& team, ptrdiff_t count, const FirstInput<T>& input);
  // h of the last layer, (capacity, pitch)
  const T* h() const { return h_.back().data(); }
  ptrdiff_t pitch() const { return pitch_; }

  // The others as in decode/step_model.h; one thread calls. A row's state is h (L, H), then c (L, H).
  void set(ptrdiff_t first, ptrdiff_t N, const T* h, const T* c);  // (L, N, H); null: 0
  void gather(ptrdiff_t count, const int32_t* from);
  ptrdiff_t state_size() const { return 2 * L_ * H_; }
  T* save(ptrdiff_t row, T* state) const;        // returns its end
  const T* load(ptrdiff_t row, const T* state);  // the same

 private:
  bool low() const { return lstm_.compute != Compute::kFull; }
  void gates_share(Team& team, size_t layer, ptrdiff_t count, const FirstInput<T>& input);
  void round_rows(size_t layer, ptrdiff_t first, ptrdiff_t count);

  const PackedWeights<T>& lstm_;
  ptrdiff_t L_, H_, pitch_, gates_pitch_;
  std::vector<Buffer<T>> h_, h_next_, c_;    // by layer: (capacity, H_pad)
  std::vector<LowRows> low_h_, low_h_next_;  // by layer: h in low precision
  std::vector<Buffer<float>> h_scale_;       // by layer, int8: largest |h| of rows that begin beyond [-1, 1]
  LowRows low_fed_;
  Buffer<T> gates_;  // (capacity, 4 H_pad): what the layer at hand reads
};

}  // namespace fusedlstm
