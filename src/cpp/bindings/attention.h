// Python's objects of decoders with attention, and the sources that a search over one is given.
#pragma once

#include "bindings/objects.h"
#include "decode/attention_decoder.h"

namespace fusedlstm {

struct PyPackedAttention {
  EitherType<PackedAttention> attention;
  template <class T>
  const std::shared_ptr<const PackedAttention<T>>& get() const {
    return std::get<std::shared_ptr<const PackedAttention<T>>>(attention);
  }
};

struct PyAttentionDecoder {
  EitherType<AttentionDecoder> decoder;
};

// The arguments that every call of a decoder has: sources and the states to start from.
template <class T>
struct AttentionSources {
  const AttentionDecoder<T>& decoder;
  ptrdiff_t N = 0, S = 0;
  View<const T> memory, h0, c0;
  View<const int32_t> lengths;

  // Without attention, N is that of `batch`, an array whose first axis counts the sequences.
  AttentionSources(const AttentionDecoder<T>& decoder_in, const char* function, ptrdiff_t batch,
                   const py::object& memory_arg, const py::object& lengths_arg, const py::object& h0_arg,
                   const py::object& c0_arg)
      : decoder(decoder_in), N(batch) {
    const PackedAttention<T>& attention = decoder.attention();
    if (attention.none()) {
      require(memory_arg.is_none() && lengths_arg.is_none(), function,
              "memory and memory_lengths must be None without attention");
    } else {
      memory = view<const T>(memory_arg, function, "memory", {{"N", N}, {"S"}, {"M", attention.M}});
      S = memory.dim(1);
      lengths = view<const int32_t>(lengths_arg, function, "memory_lengths", {{"N", N}});
      check_range(lengths, 1, S + 1, function, "memory_lengths");
      require(N * S < (ptrdiff_t{1} << 31), function, "N * S must be below 2^31");
    }
    const LstmShape& shape = decoder.shape();
    const Dims state{{"L", shape.num_layers}, {"N", N}, {"H", shape.hidden_size}};
    h0 = optional_view<const T>(h0_arg, function, "h0", state);
    c0 = optional_view<const T>(c0_arg, function, "c0", state);
  }
  AttentionRows<T> rows(ptrdiff_t capacity, const Poll& poll) const {
    return AttentionRows<T>(decoder, capacity, N, S, memory.data, lengths.data, {h0.data, c0.data}, poll);
  }
};

}  // namespace fusedlstm
