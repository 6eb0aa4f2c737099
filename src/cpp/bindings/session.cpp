// Sequences of one model that Python steps together: the same for every model whose rows a pool can hold.
#include "bindings/attention.h"
#include "bindings/generation.h"
#include "bindings/objects.h"
#include "decode/language_model.h"

namespace fusedlstm {
namespace {

// What a sequence begins with beside its prompt: states (L, H), and the memory (S, M) that attention reads.
struct Beginning {
  const py::object &h0, &c0, &memory;
};

template <class T>
void check_finite(const View<const T>& numbers, const char* function, const char* argument) {
  for (ptrdiff_t j = 0; j < numbers.size(); ++j)
    require(std::isfinite(numbers.data[j]), function,
            std::string(argument) + " must be finite, got " + std::to_string(numbers.data[j]) +
                " at position " + std::to_string(j));
}

template <class T>
LstmStates<T> check_states(const PackedWeights<T>& lstm, const char* function, const Beginning& beginning,
                           View<const T>& h0, View<const T>& c0) {
  const Dims state{{"L", lstm.shape.num_layers}, {"H", lstm.shape.hidden_size}};
  h0 = optional_view<const T>(beginning.h0, function, "h0", state);
  c0 = optional_view<const T>(beginning.c0, function, "c0", state);
  return {h0.data, c0.data};
}

// Models as a session has them: `read` makes a sequence that has read its prompt out of the free row `row`,
// and the logits (V) of what follows; `attach` prepares the row for a saved state.
template <class T>
class LanguageModelSequences {
 public:
  using Number = T;
  LanguageModelSequences(std::shared_ptr<const LanguageModelDecoder<T>> decoder, ptrdiff_t capacity)
      : decoder_(std::move(decoder)), rows_(*decoder_, capacity) {}
  StepRows<T>& rows() { return rows_; }
  const PackedWeights<T>& lstm() const { return decoder_->lstm(); }

  void read(const char* function, ptrdiff_t row, const View<const int32_t>& prompt,
            const Beginning& beginning, T* logits) {
    View<const T> h0, c0;
    const LstmStates<T> initial = check_states(lstm(), function, beginning, h0, c0);
    check_hidden(lstm(), h0, function);
    attach(function, row, beginning.memory);
    const int32_t length = static_cast<int32_t>(prompt.size());
    without_gil([&] { rows_.prefill(row, 1, prompt.data, &length, initial, logits, python_poll()); });
  }
  void attach(const char* function, ptrdiff_t, const py::object& memory) {
    require(memory.is_none(), function, "memory must be None for a language model");
  }

 private:
  std::shared_ptr<const LanguageModelDecoder<T>> decoder_;
  LanguageModelRows<T> rows_;
};

template <class T>
class AttentionSequences {
 public:
  using Number = T;
  AttentionSequences(std::shared_ptr<const AttentionDecoder<T>> decoder, ptrdiff_t capacity)
      : decoder_(std::move(decoder)), rows_(*decoder_, capacity, 0, 0, nullptr, nullptr, {}, nullptr) {}
  StepRows<T>& rows() { return rows_; }
  const PackedWeights<T>& lstm() const { return decoder_->lstm(); }

  // In a row of its own, which then moves in with the others.
  void read(const char* function, ptrdiff_t row, const View<const int32_t>& prompt,
            const Beginning& beginning, T* logits) {
    View<const T> h0, c0;
    const LstmStates<T> initial = check_states(lstm(), function, beginning, h0, c0);
    const View<const T> memory = check_memory(function, beginning.memory);
    without_gil([&] {
      const Poll poll = python_poll();
      const int32_t length = source_length(memory);
      AttentionRows<T> alone(*decoder_, 1, 1, length, memory.data, &length, initial, poll);
      run_job(0, poll, [&](Team& team) {
        for (ptrdiff_t t = 0; t < prompt.size(); ++t) alone.step_share(team, 1, prompt.data + t, logits);
      });
      rows_.attach(row, alone.source(0));
      std::vector<T> state(static_cast<size_t>(alone.state_size(0)));
      alone.save(0, state.data());
      rows_.load(row, state.data());
    });
  }
  void attach(const char* function, ptrdiff_t row, const py::object& memory_arg) {
    const View<const T> memory = check_memory(function, memory_arg);
    if (!memory.data) return;
    check_finite(memory, function, "memory");
    without_gil([&] {
      const int32_t length = source_length(memory);
      rows_.attach(row, {std::make_shared<const SourceMemory<T>>(
                            decoder_->attention(), 1, length, memory.data, &length, false, python_poll())});
    });
  }

 private:
  static int32_t source_length(const View<const T>& memory) {
    return memory.data ? static_cast<int32_t>(memory.dim(0)) : 0;
  }
  View<const T> check_memory(const char* function, const py::object& object) const {
    const PackedAttention<T>& attention = decoder_->attention();
    if (attention.none()) {
      require(object.is_none(), function, "memory must be None without attention");
      return {};
    }
    const auto memory = view<const T>(object, function, "memory", {{"S"}, {"M", attention.M}});
    require(memory.dim(0) >= 1 && memory.dim(0) < ptrdiff_t{1} << 31, function,
            "memory must have 1 .. 2^31 - 1 positions, got " + std::to_string(memory.dim(0)));
    return memory;
  }

  std::shared_ptr<const AttentionDecoder<T>> decoder_;
  AttentionRows<T> rows_;
};

class PySession {
 public:
  virtual ~PySession() = default;
  virtual ptrdiff_t capacity() = 0;
  virtual std::vector<int64_t> ids() = 0;
  virtual int64_t join(const py::object& prompt, const std::shared_ptr<SamplingOptions>& options,
                       uint64_t seed, const py::object& h0, const py::object& c0,
                       const py::object& memory) = 0;
  virtual py::list step(const py::object& processor, const py::object& token_mask) = 0;
  virtual void leave(int64_t id) = 0;
  virtual py::tuple save(int64_t id) = 0;
  virtual int64_t restore(const py::object& tokens, ptrdiff_t prompt_length, const py::object& state,
                          const py::object& logits, const std::shared_ptr<SamplingOptions>& options,
                          uint64_t seed, const py::object& memory) = 0;
};

template <class Model>
class ModelSession final : public PySession {
  using T = typename Model::Number;

 public:
  template <class Decoder>
  ModelSession(const Decoder& decoder, ptrdiff_t capacity)
      : model_(decoder, capacity), rows_(model_.rows()), pool_(rows_) {}
  ptrdiff_t capacity() override { return rows_.capacity(); }
  std::vector<int64_t> ids() override {
    const Turn turn(busy_, "GenerationSession.ids", kSession);
    std::vector<int64_t> all;
    for (const Sequence& sequence : pool_.sequences()) all.push_back(sequence.id);
    return all;
  }

  int64_t join(const py::object& prompt_arg, const std::shared_ptr<SamplingOptions>& options, uint64_t seed,
               const py::object& h0, const py::object& c0, const py::object& memory) override {
    constexpr const char* function = "GenerationSession.join";
    const Turn turn(busy_, function, kSession);
    const auto prompt = tokens_of(prompt_arg, function, "prompt");
    check_joins(function, *options);
    model_.read(function, pool_.count(), prompt, {h0, c0, memory}, pool_.logits(pool_.count()));
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
    auto state = new_array<T>({rows_.state_size(row)}), logits = new_array<T>({rows_.vocabulary()});
    rows_.save(row, state.mutable_data());
    std::copy_n(pool_.logits(row), rows_.vocabulary(), logits.mutable_data());
    return py::make_tuple(tokens_array(sequence.tokens), sequence.prompt, state, logits);
  }

  int64_t restore(const py::object& tokens_arg, ptrdiff_t prompt_length, const py::object& state_arg,
                  const py::object& logits_arg, const std::shared_ptr<SamplingOptions>& options,
                  uint64_t seed, const py::object& memory) override {
    constexpr const char* function = "GenerationSession.restore";
    const Turn turn(busy_, function, kSession);
    const auto tokens = tokens_of(tokens_arg, function, "tokens");
    require(prompt_length >= 1 && prompt_length <= tokens.size(), function,
            "prompt_length must lie in 1 .. " + std::to_string(tokens.size()) + ", got " +
                std::to_string(prompt_length));
    require(tokens.size() - prompt_length < options->max_new_tokens, function,
            "options must allow more than the " + std::to_string(tokens.size() - prompt_length) +
                " new tokens so far, got max_new_tokens " + std::to_string(options->max_new_tokens));
    check_joins(function, *options);
    const ptrdiff_t row = pool_.count();
    model_.attach(function, row, memory);  // a coverage has the length of its source
    const auto state = view<const T>(state_arg, function, "state", {{"S", rows_.state_size(row)}});
    const auto logits = view<const T>(logits_arg, function, "logits", {{"V", rows_.vocabulary()}});
    check_finite(state, function, "state");
    check_finite(logits, function, "logits");
    const LstmShape& shape = model_.lstm().shape;
    check_hidden(model_.lstm(), state.data, shape.num_layers * shape.hidden_size, function);
    rows_.load(row, state.data);
    std::copy_n(logits.data, logits.size(), pool_.logits(row));
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

  Model model_;
  StepRows<T>& rows_;
  GenerationPool<T> pool_;
  int64_t next_id_ = 0;
  std::atomic_flag busy_;
};

template <template <class> class Sequences, class Decoders>
std::unique_ptr<PySession> session_of(const Decoders& decoders, ptrdiff_t capacity) {
  return std::visit(
      [&](const auto& held) -> std::unique_ptr<PySession> {
        using T = std::remove_cvref_t<decltype(*held->lstm().layers[0].bias.data())>;
        return std::make_unique<ModelSession<Sequences<T>>>(held, capacity);
      },
      decoders);
}

std::unique_ptr<PySession> make_session(const py::object& decoder, ptrdiff_t capacity) {
  require(capacity >= 1 && capacity <= 1 << 20, "GenerationSession",
          "capacity must lie in 1 .. 2^20, got " + std::to_string(capacity));
  if (py::isinstance<PyDecoder>(decoder))
    return session_of<LanguageModelSequences>(decoder.cast<const PyDecoder&>().decoder, capacity);
  if (py::isinstance<PyAttentionDecoder>(decoder))
    return session_of<AttentionSequences>(decoder.cast<const PyAttentionDecoder&>().decoder, capacity);
  throw py::type_error(
      "GenerationSession: decoder must be a LanguageModelDecoder or an AttentionDecoder, got " +
      std::string(py::str(py::type::handle_of(decoder).attr("__name__"))));
}

}  // namespace

void bind_session(py::module_& m) {
  py::class_<PySession> session(m, "GenerationSession");
  session.def(py::init(&make_session), py::arg("decoder"), py::arg("capacity"));
  session.def_property_readonly("capacity", &PySession::capacity);
  session.def_property_readonly("ids", &PySession::ids);
  session.def("join", &PySession::join, py::arg("prompt"), py::arg("options"), py::arg("seed"), py::kw_only(),
              py::arg("h0") = py::none(), py::arg("c0") = py::none(), py::arg("memory") = py::none());
  session.def("step", &PySession::step, py::kw_only(), py::arg("processor") = py::none(),
              py::arg("token_mask") = py::none());
  session.def("leave", &PySession::leave, py::arg("id"));
  session.def("save", &PySession::save, py::arg("id"));
  session.def("restore", &PySession::restore, py::arg("tokens"), py::arg("prompt_length"), py::arg("state"),
              py::arg("logits"), py::arg("options"), py::arg("seed"), py::kw_only(),
              py::arg("memory") = py::none());
}

}  // namespace fusedlstm
