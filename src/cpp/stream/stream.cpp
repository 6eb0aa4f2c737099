#include "stream/stream.h"

#include <algorithm>
#include <utility>

#include "kernels/ticks.h"
#include "lstm/split.h"
#include "lstm/step_work.h"
#include "runtime/flush_to_zero.h"

namespace fusedlstm {

template <class T>
Stream<T>::Stream(std::shared_ptr<const PackedWeights<T>> weights, ptrdiff_t capacity)
    : weights_(std::move(weights)),
      capacity_(capacity),
      pitch_(row_pitch<T>(weights_->shape.hidden_size)),
      gates_(capacity > kStepRows ? capacity * 4 * weights_->shape.hidden_padded() : 0) {
  ids_.reserve(static_cast<size_t>(capacity));
  const ptrdiff_t H = shape().hidden_size, H_pad = shape().hidden_padded();
  for (const PackedLayer<T>& packed : weights_->layers) {
    const auto zeros = [&] { return Buffer<T>::zeros(capacity * pitch_); };
    Layer layer{zeros(), zeros(), zeros(), {}};
    layer.step = {.cell = {.M = 0,
                           .H = H,
                           .H_pad = H_pad,
                           .unit_begin = 0,
                           .unit_end = H_pad,
                           .h_prev = nullptr,
                           .h_row = pitch_,
                           .recurrent = packed.recurrent.data(),
                           .input = packed.bias.data(),
                           .input_row = 0,
                           .gates = nullptr,
                           .gates_row = 0,
                           .c_prev = layer.c.data(),
                           .c = layer.c.data(),
                           .c_row = pitch_,
                           .h = nullptr},
                  .I = packed.inputs,
                  .x = nullptr,
                  .x_row = 0,
                  .weights = packed.input.data()};
    input_weights_ += 4 * H * packed.inputs;
    recurrent_weights_ += 4 * H * H;
    layers_.push_back(std::move(layer));
  }
}

template <class T>
bool Stream<T>::pays(const PackedWeights<T>& w, ptrdiff_t N, ptrdiff_t time) {
  constexpr ptrdiff_t nearly_first_level = 1 << 16;  // bytes of one layer's weights
  const ptrdiff_t H = w.shape.hidden_size, inputs = std::max(w.shape.input_size, H);
  const ptrdiff_t weight_bytes = 4 * H * (inputs + H) * static_cast<ptrdiff_t>(sizeof(T));
  return N >= 1 && N <= kStepRows && !w.shape.bidirectional && w.compute == Compute::kFull &&
         (time == 1 || weight_bytes <= nearly_first_level) && layer_threads(N, N * time, H, inputs) == 1;
}

template <class T>
int64_t Stream<T>::join(const T* h, const T* c, ptrdiff_t layer_row) {
  ids_.push_back(next_id_);
  restore(rows() - 1, h, c, layer_row);
  return next_id_++;
}

template <class T>
void Stream<T>::leave(ptrdiff_t row) {
  for (Layer& layer : layers_)
    for (Buffer<T>* state : {&layer.h, &layer.c})
      std::copy(state->data() + (row + 1) * pitch_, state->data() + rows() * pitch_,
                state->data() + row * pitch_);
  ids_.erase(ids_.begin() + row);
}

template <class T>
void Stream<T>::save(ptrdiff_t row, T* h, T* c, ptrdiff_t layer_row) const {
  const ptrdiff_t H = shape().hidden_size, next = layer_row ? layer_row : H;
  for (const Layer& layer : layers_) {
    std::copy(layer.h.data() + row * pitch_, layer.h.data() + row * pitch_ + H, h);
    std::copy(layer.c.data() + row * pitch_, layer.c.data() + row * pitch_ + H, c);
    h += next;
    c += next;
  }
}

template <class T>
void Stream<T>::restore(ptrdiff_t row, const T* h, const T* c, ptrdiff_t layer_row) {
  const ptrdiff_t H = shape().hidden_size, next = layer_row ? layer_row : H;
  const auto set = [&](const T*& from, T* to) {
    std::fill(to, to + pitch_, T(0));
    if (!from) return;
    std::copy(from, from + H, to);
    from += next;
  };
  for (Layer& layer : layers_) {
    set(h, layer.h.data() + row * pitch_);
    set(c, layer.c.data() + row * pitch_);
  }
}

template <class T>
void Stream<T>::step_layers(const T* x, ptrdiff_t x_row, T* y, ptrdiff_t y_row, StepTicks* ticks) {
  const ptrdiff_t H = shape().hidden_size, M = rows();
  const Kernels<T>& k = weights_->kernels();
  for (Layer& layer : layers_) {
    StepForward<T>& step = layer.step;
    step.cell.M = M;
    step.cell.h_prev = layer.h.data();
    step.cell.h = layer.h_next.data();
    step.cell.ticks = ticks;
    step.x = x;
    step.x_row = x_row;
    if (M <= kStepRows) {
      k.step_forward(step);
    } else {
      CellForward<T> cell = step.cell;
      cell.input = gates_.data();
      cell.input_row = 4 * cell.H_pad;
      PartTimer timer(ticks);
      k.gemm({.M = M,
              .N = cell.input_row,
              .K = step.I,
              .a = x,
              .a_row = x_row,
              .b = step.weights,
              .init = step.cell.input,
              .init_row = 0,
              .c = gates_.data(),
              .c_row = cell.input_row});
      timer.end(&StepTicks::input);
      k.cell_forward(cell);
    }
    step.cell.descending = !step.cell.descending;
    std::swap(layer.h, layer.h_next);
    x = layer.h.data();
    x_row = pitch_;
  }
  for (ptrdiff_t row = 0; row < M; ++row) std::copy(x + row * x_row, x + row * x_row + H, y + row * y_row);
}

// All weights are read at every step.
template <class T>
StepWork Stream<T>::work(ptrdiff_t steps) const {
  const auto product = [&](ptrdiff_t weights) {
    return elements_work(steps * weights, 2 * static_cast<double>(rows()), sizeof(T));
  };
  const ptrdiff_t units = shape().hidden_size * shape().num_layers;
  return {product(input_weights_), product(recurrent_weights_), gates_work<T>(steps * rows() * units)};
}

template <class T>
void Stream<T>::step(const T* x, ptrdiff_t x_row, T* y, ptrdiff_t y_row) {
  const FlushToZero flush;
  StepScope scope(-1, [&] { return work(1); });
  step_layers(x, x_row, y, y_row, scope.ticks());
}

template <class T>
void Stream<T>::run(ptrdiff_t steps, const T* x, T* y, const Poll& poll) {
  const ptrdiff_t I = shape().input_size, H = shape().hidden_size;
  // A poll reads the clock, which takes as long as a small step.
  const double flops = 2.0 * static_cast<double>(std::max<ptrdiff_t>(rows(), 1)) *
                       static_cast<double>(parameter_count(shape()));
  const ptrdiff_t poll_every = std::max<ptrdiff_t>(1, static_cast<ptrdiff_t>(1e6 / flops));
  constexpr ptrdiff_t timed_every = 16;  // reading the counter takes long beside a small step
  run_job(1, poll, [&](Team& team) {
    StepScope scope(-1, [&] { return work(steps); }, steps);
    for (ptrdiff_t t = 0; t < steps; ++t) {
      if (t % poll_every == 0) team.poll();
      step_layers(x + t * I, steps * I, y + t * H, steps * H, t % timed_every ? nullptr : scope.ticks());
    }
  });
}

template class Stream<float>;
template class Stream<double>;

}  // namespace fusedlstm
