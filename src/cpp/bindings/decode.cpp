#include "bindings/generation.h"
#include "bindings/objects.h"
#include "decode/language_model.h"

namespace fusedlstm {
namespace {

PyDecoder make_decoder(const PyPackedLSTM& lstm, const py::object& embedding_arg,
                       const PyPackedLinear& output) {
  constexpr const char* function = "LanguageModelDecoder";
  require(!lstm.lstm.shape.bidirectional, function, "lstm must have one direction, got a bidirectional one");
  require(lstm.lstm.type == variant_type(output.weights), function,
          std::string("output must be ") + type_name(lstm.lstm.type) + " as lstm, got " +
              type_name(variant_type(output.weights)));
  return with_type(lstm.lstm.type, [&](auto zero) {
    using T = decltype(zero);
    const auto& linear = output.get<T>();
    require(linear->inputs == lstm.lstm.shape.hidden_size, function,
            "output must take H=" + std::to_string(lstm.lstm.shape.hidden_size) + " inputs, got " +
                std::to_string(linear->inputs));
    const auto embedding = view<const T>(embedding_arg, function, "embedding",
                                         {{"V", linear->outputs}, {"I", lstm.lstm.shape.input_size}});
    std::shared_ptr<const LanguageModelDecoder<T>> decoder;
    without_gil(
        [&] { decoder = std::make_shared<LanguageModelDecoder<T>>(lstm.get<T>(), embedding.data, linear); });
    return PyDecoder{decoder};
  });
}

PyGeneration generate_tokens(const PyDecoder& self, const py::object& prompts_arg,
                             const py::object& lengths_arg, const std::shared_ptr<SamplingOptions>& options,
                             const py::object& seeds, const py::object& h0_arg, const py::object& c0_arg,
                             const py::object& on_tokens, const py::object& processor,
                             const py::object& token_mask) {
  constexpr const char* function = "generate";
  return std::visit(
      [&](const auto& decoder) {
        using T = std::remove_cvref_t<decltype(*decoder->embedding())>;
        const LstmShape& shape = decoder->shape();
        const auto lengths = view<const int32_t>(lengths_arg, function, "prompt_lengths", {{"N"}});
        const ptrdiff_t N = lengths.size();
        ptrdiff_t total = 0;
        for (ptrdiff_t b = 0; b < N; ++b) {
          require(lengths.data[b] >= 1, function,
                  "prompt_lengths must be at least 1, got " + std::to_string(lengths.data[b]) +
                      " at position " + std::to_string(b));
          total += lengths.data[b];
        }
        const auto prompts =
            view<const int32_t>(prompts_arg, function, "prompts", {{"sum(prompt_lengths)", total}});
        check_range(prompts, 0, decoder->vocabulary(), function, "prompts");
        const Dims state{{"L", shape.num_layers}, {"N", N}, {"H", shape.hidden_size}};
        const auto h0 = optional_view<const T>(h0_arg, function, "h0", state);
        const auto c0 = optional_view<const T>(c0_arg, function, "c0", state);
        check_hidden(decoder->lstm(), h0, function);
        view<const uint64_t>(seeds, function, "seeds", {{"R", N * options->num_sequences}});
        LanguageModelRows<T> rows(*decoder, N * options->num_sequences);
        return run_generation<T>(
            function, rows, N, prompts.data, lengths.data, {options, seeds, on_tokens, processor, token_mask},
            [&](T* logits, const Poll& poll) {
              rows.prefill(0, N, prompts.data, lengths.data, {h0.data, c0.data}, logits, poll);
            });
      },
      self.decoder);
}

class PySession {
 public:
  virtual ~PySession() = default;
  virtual ptrdiff_t capacity() const = 0;
  virtual std::vector<int64_t> ids() = 0;
  virtual int64_t join(const py::object& prompt, const std::shared_ptr<SamplingOptions>& options,
                       uint64_t seed) = 0;
  virtual py::list step(const py::object& processor, const py::object& token_mask) = 0;
  virtual void leave(int64_t id) = 0;
  virtual py::tuple save(int64_t id) = 0;
  virtual int64_t restore(const py::object& tokens, ptrdiff_t prompt_length, const py::object& state,
                          const py::object& logits, const std::shared_ptr<SamplingOptions>& options,
                          uint64_t seed) = 0;
};

template <class T>
class TypedSession final : public PySession {
 public:
  TypedSession(std::shared_ptr<const LanguageModelDecoder<T>> decoder, ptrdiff_t capacity)
      : decoder_(std::move(decoder)), rows_(*decoder_, capacity), pool_(rows_) {}
  ptrdiff_t capacity() const override { return rows_.capacity(); }
  std::vector<int64_t> ids() override {
    const Turn turn(busy_, "GenerationSession.ids", kSession);
    std::vector<int64_t> all;
    for (const Sequence& sequence : pool_.sequences()) all.push_back(sequence.id);
    return all;
  }

  int64_t join(const py::object& prompt_arg, const std::shared_ptr<SamplingOptions>& options,
               uint64_t seed) override {
    constexpr const char* function = "GenerationSession.join";
    const Turn turn(busy_, function, kSession);
    const auto prompt = tokens_of(prompt_arg, function, "prompt");
    check_joins(function, *options);
    const int32_t length = static_cast<int32_t>(prompt.size());
    without_gil([&] {
      rows_.prefill(pool_.count(), 1, prompt.data, &length, {}, pool_.logits(pool_.count()), python_poll());
    });
    return add(options, seed, prompt, prompt.size());
  }

  py::list step(const py::object& processor, const py::object& token_mask) override {
    constexpr const char* function = "GenerationSession.step";
    const Turn turn(busy_, function, kSession);
    const Hooks<T> hooks = python_hooks<T>(function, rows_.vocabulary(), processor, token_mask);
    py::list results;
    if (pool_.count() == 0) return results;
    std::vector<int64_t> all;
    for (const Sequence& sequence : pool_.sequences()) all.push_back(sequence.id);
    without_gil([&] {
      const int threads = num_threads();
      pool_.prepare(threads, hooks);
      run_job(threads, nullptr, [&](Team& team) {  // no poll: an end half-way would leave half a step
        pool_.choose_share(team, hooks);
        if (team.thread() == 0) {
          pool_.append();
          pool_.drop_finished();
        }
        team.barrier();
        pool_.step_share(team);
      });
    });
    for (size_t j = 0; j < all.size(); ++j) {
      const Choice<T>& choice = pool_.choices()[j];
      py::list top;
      for (size_t k = 0; k < choice.top.size(); ++k)
        top.append(py::make_tuple(choice.top[k], choice.top_log_probability[k]));
      results.append(py::make_tuple(all[j], choice.token, choice.log_probability, finish_name(choice.finish),
                                    choice.behind, top));
    }
    return results;
  }

  void leave(int64_t id) override {
    const Turn turn(busy_, "GenerationSession.leave", kSession);
    pool_.remove(row_of(id, "GenerationSession.leave"));
  }

  py::tuple save(int64_t id) override {
    const Turn turn(busy_, "GenerationSession.save", kSession);
    const ptrdiff_t row = row_of(id, "GenerationSession.save");
    const Sequence& sequence = pool_.sequences()[static_cast<size_t>(row)];
    auto state = new_array<T>({rows_.state_size()}), logits = new_array<T>({rows_.vocabulary()});
    rows_.save(row, state.mutable_data());
    std::copy_n(pool_.logits(row), rows_.vocabulary(), logits.mutable_data());
    return py::make_tuple(tokens_array(sequence.tokens), sequence.prompt, state, logits);
  }

  int64_t restore(const py::object& tokens_arg, ptrdiff_t prompt_length, const py::object& state_arg,
                  const py::object& logits_arg, const std::shared_ptr<SamplingOptions>& options,
                  uint64_t seed) override {
    constexpr const char* function = "GenerationSession.restore";
    const Turn turn(busy_, function, kSession);
    const auto tokens = tokens_of(tokens_arg, function, "tokens");
    require(prompt_length >= 1 && prompt_length <= tokens.size(), function,
            "prompt_length must lie in 1 .. " + std::to_string(tokens.size()) + ", got " +
                std::to_string(prompt_length));
    require(tokens.size() - prompt_length < options->max_new_tokens, function,
            "options must allow more than the " + std::to_string(tokens.size() - prompt_length) +
                " new tokens so far, got max_new_tokens " + std::to_string(options->max_new_tokens));
    const auto state = view<const T>(state_arg, function, "state", {{"S", rows_.state_size()}});
    const auto logits = view<const T>(logits_arg, function, "logits", {{"V", rows_.vocabulary()}});
    const auto finite = [&](const View<const T>& numbers, const char* argument) {
      for (ptrdiff_t j = 0; j < numbers.size(); ++j)
        require(std::isfinite(numbers.data[j]), function,
                std::string(argument) + " must be finite, got " + std::to_string(numbers.data[j]) +
                    " at position " + std::to_string(j));
    };
    finite(state, "state");
    finite(logits, "logits");
    check_hidden(decoder_->lstm(), state.data, state.size() / 2, function);
    check_joins(function, *options);
    rows_.load(pool_.count(), state.data);
    std::copy_n(logits.data, logits.size(), pool_.logits(pool_.count()));
    return add(options, seed, tokens, prompt_length);
  }

 private:
  static constexpr const char* kSession = "session";

  View<const int32_t> tokens_of(const py::object& object, const char* function, const char* argument) const {
    const auto tokens = view<const int32_t>(object, function, argument, {{"T"}});
    require(tokens.size() >= 1, function, std::string(argument) + " must have at least one token, got none");
    check_range(tokens, 0, rows_.vocabulary(), function, argument);
    return tokens;
  }
  void check_joins(const char* function, const SamplingOptions& options) const {
    check_options(options, rows_.vocabulary(), function);
    require(options.max_new_tokens >= 1 && options.num_sequences == 1, function,
            "options must have max_new_tokens >= 1 and num_sequences 1, got " +
                std::to_string(options.max_new_tokens) + " and " + std::to_string(options.num_sequences));
    require(pool_.count() < rows_.capacity(), function,
            "capacity must exceed the " + std::to_string(pool_.count()) + " sequences in use, got " +
                std::to_string(rows_.capacity()));
  }
  int64_t add(const std::shared_ptr<SamplingOptions>& options, uint64_t seed,
              const View<const int32_t>& tokens, ptrdiff_t prompt) {
    pool_.add({next_id_, options, seed, {tokens.data, tokens.data + tokens.size()}, prompt});
    return next_id_++;
  }
  ptrdiff_t row_of(int64_t id, const char* function) const {
    for (ptrdiff_t j = 0; j < pool_.count(); ++j)
      if (pool_.sequences()[static_cast<size_t>(j)].id == id) return j;
    throw py::value_error(std::string(function) + ": id must be that of a live sequence, got " +
                          std::to_string(id));
  }

  std::shared_ptr<const LanguageModelDecoder<T>> decoder_;
  LanguageModelRows<T> rows_;
  GenerationPool<T> pool_;
  int64_t next_id_ = 0;
  std::atomic_flag busy_;
};

std::unique_ptr<PySession> make_session(const PyDecoder& decoder, ptrdiff_t capacity) {
  require(capacity >= 1 && capacity <= 1 << 20, "GenerationSession",
          "capacity must lie in 1 .. 2^20, got " + std::to_string(capacity));
  return std::visit(
      [&](const auto& held) -> std::unique_ptr<PySession> {
        using T = std::remove_cvref_t<decltype(*held->embedding())>;
        return std::make_unique<TypedSession<T>>(held, capacity);
      },
      decoder.decoder);
}

}  // namespace

void bind_decode(py::module_& m) {
  py::class_<PyDecoder> decoder(m, "LanguageModelDecoder");
  decoder.def(py::init(&make_decoder), py::arg("lstm"), py::arg("embedding"), py::arg("output"));
  decoder.def_property_readonly("vocabulary_size", [](const PyDecoder& d) {
    return std::visit([](const auto& held) { return held->vocabulary(); }, d.decoder);
  });
  decoder.def_property_readonly("nbytes", [](const PyDecoder& d) {
    return std::visit([](const auto& held) { return held->bytes(); }, d.decoder);
  });
  decoder.def("generate", &generate_tokens, py::arg("prompts"), py::arg("prompt_lengths"), py::arg("options"),
              py::kw_only(), py::arg("seeds"), py::arg("h0") = py::none(), py::arg("c0") = py::none(),
              py::arg("on_tokens") = py::none(), py::arg("processor") = py::none(),
              py::arg("token_mask") = py::none());

  py::class_<PySession> session(m, "GenerationSession");
  session.def(py::init(&make_session), py::arg("decoder"), py::arg("capacity"));
  session.def_property_readonly("capacity", &PySession::capacity);
  session.def_property_readonly("ids", &PySession::ids);
  session.def("join", &PySession::join, py::arg("prompt"), py::arg("options"), py::arg("seed"));
  session.def("step", &PySession::step, py::kw_only(), py::arg("processor") = py::none(),
              py::arg("token_mask") = py::none());
  session.def("leave", &PySession::leave, py::arg("id"));
  session.def("save", &PySession::save, py::arg("id"));
  session.def("restore", &PySession::restore, py::arg("tokens"), py::arg("prompt_length"), py::arg("state"),
              py::arg("logits"), py::arg("options"), py::arg("seed"));
}

}  // namespace fusedlstm
