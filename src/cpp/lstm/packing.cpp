#include "lstm/packing.h"

#include <type_traits>

#include "runtime/products.h"
#include "runtime/profiler.h"

namespace fusedlstm {
namespace {

// What a weight of so many elements takes in the flat buffer.
ptrdiff_t taken(ptrdiff_t size) { return (size + 15) / 16 * 16; }

}  // namespace

std::vector<WeightOffsets> weight_offsets(const LstmShape& s) {
  std::vector<WeightOffsets> all;
  ptrdiff_t next = 0;
  const auto take = [&](ptrdiff_t size) {
    const ptrdiff_t offset = next;
    next += taken(size);
    return offset;
  };
  const ptrdiff_t H = s.hidden_size;
  for (ptrdiff_t layer = 0; layer < s.num_layers; ++layer) {
    for (ptrdiff_t direction = 0; direction < s.directions(); ++direction) {
      WeightOffsets w{};
      w.weight_ih = take(4 * H * s.layer_inputs(layer));
      w.weight_hh = take(4 * H * H);
      w.bias_ih = s.bias ? take(4 * H) : -1;
      w.bias_hh = s.bias ? take(4 * H) : -1;
      all.push_back(w);
    }
  }
  return all;
}

std::vector<NamedWeight> weight_table(const LstmShape& s) {
  std::vector<NamedWeight> table;
  const std::vector<WeightOffsets> offsets = weight_offsets(s);
  const ptrdiff_t H = s.hidden_size, D = s.directions();
  for (ptrdiff_t layer = 0; layer < s.num_layers; ++layer) {
    for (ptrdiff_t direction = 0; direction < D; ++direction) {
      const WeightOffsets& w = offsets[static_cast<size_t>(layer * D + direction)];
      const std::string suffix = "_l" + std::to_string(layer) + (direction ? "_reverse" : "");
      table.push_back({"weight_ih" + suffix, {4 * H, s.layer_inputs(layer)}, w.weight_ih});
      table.push_back({"weight_hh" + suffix, {4 * H, H}, w.weight_hh});
      if (!s.bias) continue;
      table.push_back({"bias_ih" + suffix, {4 * H}, w.bias_ih});
      table.push_back({"bias_hh" + suffix, {4 * H}, w.bias_hh});
    }
  }
  return table;
}

ptrdiff_t parameter_count(const LstmShape& s) {
  const ptrdiff_t H = s.hidden_size;
  ptrdiff_t count = 0;
  for (ptrdiff_t layer = 0; layer < s.num_layers; ++layer)
    count += taken(4 * H * s.layer_inputs(layer)) + taken(4 * H * H) + (s.bias ? 2 * taken(4 * H) : 0);
  return s.directions() * count;
}

template <class T>
size_t PackedWeights<T>::bytes() const {
  size_t sum = 0;
  for (const PackedLayer<T>& l : layers)
    sum += l.input.bytes() + l.recurrent.bytes() + l.bias.bytes() + l.input_backward.bytes() +
           l.recurrent_backward.bytes() + l.low_input.bytes() + l.low_recurrent.bytes() +
           l.low_input_backward.bytes() + l.low_recurrent_backward.bytes();
  return sum;
}

template <class T>
PackedWeights<T> pack_weights(const LstmShape& shape, const T* parameters, bool backward, Compute compute) {
  PackedWeights<T> packed{shape, &current_level(), backward, compute, {}};
  const Kernels<T>& k = packed.kernels();
  const ptrdiff_t H = shape.hidden_size, Hp = shape.hidden_padded(), D = shape.directions();
  const std::vector<WeightOffsets> offsets = weight_offsets(shape);

  struct Piece {  // what one thread packs at a time
    size_t layer;
    int matrix;  // input, recurrent, the same two for backward
  };
  std::vector<Piece> pieces;
  for (size_t l = 0; l < offsets.size(); ++l) {
    const ptrdiff_t inputs = shape.layer_inputs(static_cast<ptrdiff_t>(l) / D);
    PackedLayer<T> layer;
    layer.inputs = inputs;
    layer.bias = Buffer<T>::zeros(4 * Hp);
    if (compute == Compute::kFull) {
      layer.input = Buffer<T>(packed_size(inputs, 4 * Hp, k.panel));
      layer.recurrent = Buffer<T>(H * 4 * Hp);
      layer.input_backward = Buffer<T>(backward ? packed_size(4 * Hp, inputs, k.panel) : 0);
      layer.recurrent_backward = Buffer<T>(backward ? packed_size(4 * Hp, H, k.panel) : 0);
    } else if (compute == Compute::kBfloat16) {
      layer.low_input.bf16 = Buffer<uint16_t>(low_packed_size(inputs, 4 * Hp));
      layer.low_recurrent.bf16 = Buffer<uint16_t>(low_packed_size(H, 4 * Hp));
      layer.low_input_backward.bf16 = Buffer<uint16_t>(backward ? low_packed_size(4 * Hp, inputs) : 0);
      layer.low_recurrent_backward.bf16 = Buffer<uint16_t>(backward ? low_packed_size(4 * Hp, H) : 0);
    } else {
      for (LowMatrix* matrix : {&layer.low_input, &layer.low_recurrent}) {
        const ptrdiff_t K = matrix == &layer.low_input ? inputs : H;
        matrix->int8 = Buffer<int8_t>(4 * Hp / kLowPanel * int8_panel(K));
        matrix->scale = Buffer<float>::zeros(4 * Hp);
      }
    }
    if (shape.bias) {
      const T *b_ih = parameters + offsets[l].bias_ih, *b_hh = parameters + offsets[l].bias_hh;
      for (ptrdiff_t gate = 0; gate < 4; ++gate)
        for (ptrdiff_t u = 0; u < H; ++u) layer.bias[gate * Hp + u] = b_ih[gate * H + u] + b_hh[gate * H + u];
    }
    packed.layers.push_back(std::move(layer));
    for (int matrix = 0; matrix < (backward ? 4 : 2); ++matrix) pieces.push_back({l, matrix});
  }

  const RowGroups gates{H, Hp};
  run_job(threads_for(4.0 * static_cast<double>(parameter_count(shape))), nullptr, [&](Team& team) {
    for (size_t p = static_cast<size_t>(team.thread()); p < pieces.size();
         p += static_cast<size_t>(team.threads())) {
      const size_t l = pieces[p].layer;
      PackedLayer<T>& layer = packed.layers[l];
      const bool recurrent = pieces[p].matrix % 2 == 1;
      const ptrdiff_t n = recurrent ? H : layer.inputs;
      const T* weight = parameters + (recurrent ? offsets[l].weight_hh : offsets[l].weight_ih);
      const Scope scope(Phase::kPack, static_cast<ptrdiff_t>(l) / D,
                        [&] { return elements_work(4 * H * n, 0, 2 * sizeof(T)); });
      if (pieces[p].matrix == 1 && compute == Compute::kFull) {
        k.pack_recurrent(H, Hp, weight, layer.recurrent.data());
        continue;
      }
      if constexpr (std::is_same_v<T, float>) {
        LowMatrix& low = pieces[p].matrix == 0   ? layer.low_input
                         : pieces[p].matrix == 1 ? layer.low_recurrent
                         : pieces[p].matrix == 2 ? layer.low_input_backward
                                                 : layer.low_recurrent_backward;
        const bool side_by_side = pieces[p].matrix == 1;
        if (compute == Compute::kBfloat16) {
          const auto& pack = packed.level->bf16.pack;
          const LowLayout layout = bf16_layout(n);
          if (side_by_side)
            for (ptrdiff_t gate = 0; gate < 4; ++gate)
              pack(n, Hp, weight + gate * H * n, n, SourceBy::kColumns, gates,
                   low.bf16.data() + gate * layout.step, four_gates(layout));
          else if (pieces[p].matrix == 0)
            pack(n, 4 * Hp, weight, n, SourceBy::kColumns, gates, low.bf16.data(), layout);
          else
            pack(4 * Hp, n, weight, n, SourceBy::kRows, gates, low.bf16.data(), bf16_layout(4 * Hp));
          continue;
        }
        if (compute == Compute::kInt8) {
          const LowLayout layout = int8_layout(n);
          for (ptrdiff_t gate = 0; gate < 4; ++gate)
            packed.level->int8.pack(
                n, H, weight + gate * H * n, n,
                low.int8.data() + gate * (side_by_side ? layout.step : Hp / kLowPanel * layout.panel),
                side_by_side ? four_gates(layout) : layout, low.scale.data() + gate * Hp);
          const bool hidden = recurrent || l >= static_cast<size_t>(D);
          if (hidden) k.scale(4 * Hp, 1 / 127.0f, low.scale.data());
          continue;
        }
      }
      if (pieces[p].matrix == 0)
        k.pack(n, 4 * Hp, weight, n, SourceBy::kColumns, gates, layer.input.data());
      else
        k.pack(4 * Hp, n, weight, n, SourceBy::kRows, gates,
               (recurrent ? layer.recurrent_backward : layer.input_backward).data());
    }
  });
  return packed;
}

template struct PackedWeights<float>;
template struct PackedWeights<double>;
template PackedWeights<float> pack_weights(const LstmShape&, const float*, bool, Compute);
template PackedWeights<double> pack_weights(const LstmShape&, const double*, bool, Compute);

}  // namespace fusedlstm
