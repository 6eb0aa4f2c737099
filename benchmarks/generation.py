"""Text out of language models: 2 x 512 characters, one sequence and 64; 2 x 650 words; greedy and sampled.

The peers are a loop over torch's layers under inference_mode, and a loop over ONNX Runtime whose states stay
in bound buffers and whose tokens are chosen by NumPy. Ours also with weights in bfloat16 and int8, beside the
same float32 peers and beside ours in float32. With 10,000 words ours is also timed with logits processors:
the usual four together, and those that must sort the whole vocabulary.

Before timing, greedy texts are compared, and the log-probabilities that we report of our tokens with torch's
of the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from . import peers
from .harness import Plan, Record, add_bandwidth, alternate_all, assert_close, beside_itself, use_threads
from .language_model import CHARACTERS, LAYERS, WORDS, Size, TorchLanguageModel, pair
from .layer_inference import BYTES

BENCHMARK = "generation"
PROMPT_TOKENS = 6
PROCESSORS = {
    "processors": {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.2},
    "top-p": {"top_p": 0.95},
    "typical": {"typical_p": 0.95},
}


@dataclass(frozen=True)
class Case:
    """What is generated."""

    size: Size
    N: int
    dtype: str
    greedy: bool

    @property
    def name(self) -> str:
        kind = "greedy" if self.greedy else "sampled"
        suffix = "" if self.dtype == "float32" else f" {self.dtype}"
        return f"{LAYERS}x{self.size.hidden} V={len(self.size.vocabulary)} N={self.N} {kind}{suffix}"

    @property
    def prompts(self) -> np.ndarray:
        """(N, PROMPT_TOKENS) int32, without special tokens."""
        ids = np.random.default_rng(self.N).integers(
            1, len(self.size.vocabulary) - 1, (self.N, PROMPT_TOKENS)
        )
        return ids.astype(np.int32)

    @property
    def weights_per_step(self) -> int:
        """Numbers that a step reads: the first layer's x W_ih is a row of a table."""
        H = self.size.hidden
        return (2 * LAYERS - 1) * 4 * H * H + len(self.size.vocabulary) * H


CASES = [
    Case(CHARACTERS, N, dtype, greedy)
    for N in (1, 64)
    for dtype in ("float32", "bfloat16", "int8")
    for greedy in (True, False)
] + [Case(WORDS, 1, "float32", False)]


@torch.inference_mode()
def torch_generate(model: TorchLanguageModel, prompts: torch.Tensor, new: int, greedy: bool) -> np.ndarray:
    """New tokens (N, new)."""
    logits, state = model(prompts)
    generated = []
    for k in range(new):
        last = logits[:, -1]
        token = last.argmax(-1, keepdim=True) if greedy else torch.multinomial(torch.softmax(last, -1), 1)
        generated.append(token)
        if k + 1 < new:
            logits, state = model(token, state)
    return torch.cat(generated, 1).numpy()


@torch.inference_mode()
def torch_log_probabilities(model: TorchLanguageModel, prompts: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Of given new tokens (N, T)."""
    fed = torch.from_numpy(np.concatenate([prompts, new[:, :-1]], 1)).long()
    log_p = torch.log_softmax(model(fed)[0][:, prompts.shape[1] - 1 :], -1)
    return log_p.gather(-1, torch.from_numpy(new).long()[..., None])[..., 0].numpy()


class OnnxLanguageModel:
    """N sequences whose states are read from one set of buffers and written to another, in turn."""

    def __init__(self, model: TorchLanguageModel, N: int, threads: int) -> None:
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper

        H = model.lstm.hidden_size
        self.states = [f"{state}{layer}" for layer in range(LAYERS) for state in "hc"]
        constants = {name: value.numpy() for name, value in model.state_dict().items() if "lstm" not in name}
        constants |= {"axis0": np.array([0]), "axis1": np.array([1])}
        nodes = [helper.make_node("Gather", ["embedding.weight", "tokens"], ["x0"])]
        for layer in range(LAYERS):
            w, r, b_ih, b_hh = peers.stacked(model.lstm, "iofg", layer)
            constants |= {f"W{layer}": w, f"R{layer}": r, f"B{layer}": np.concatenate([b_ih, b_hh], -1)}
            read = [f"x{layer}", f"W{layer}", f"R{layer}", f"B{layer}", "", f"h{layer}", f"c{layer}"]
            last = layer + 1 == LAYERS
            written = ["" if last else f"y{layer}", f"h{layer}_next", f"c{layer}_next"]
            nodes.append(helper.make_node("LSTM", read, written, hidden_size=H))
            if not last:
                nodes.append(helper.make_node("Squeeze", [f"y{layer}", "axis1"], [f"x{layer + 1}"]))
        nodes += [
            helper.make_node("Squeeze", [f"h{LAYERS - 1}_next", "axis0"], ["last"]),
            helper.make_node("Gemm", ["last", "output.weight", "output.bias"], ["logits"], transB=1),
        ]
        V = len(constants["output.bias"])
        state = [1, N, H]
        graph = helper.make_graph(
            nodes,
            "steps",
            [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["T", N])]
            + [helper.make_tensor_value_info(name, TensorProto.FLOAT, state) for name in self.states],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [N, V])]
            + [
                helper.make_tensor_value_info(f"{name}_next", TensorProto.FLOAT, state)
                for name in self.states
            ],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        self.session = peers.onnxruntime_session(peers.onnx_model(graph), threads)

        def buffer(shape: list[int], dtype: type = np.float32) -> onnxruntime.OrtValue:
            return onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype))

        self.zeros = {name: np.zeros(state, np.float32) for name in self.states}
        self.tokens, self.logits = buffer([1, N], np.int64), buffer([N, V])
        self.buffers = [{name: buffer(state) for name in self.states} for _ in range(2)]
        self.turns = []
        for before, after in (self.buffers, self.buffers[::-1]):
            binding = self.session.io_binding()
            binding.bind_ortvalue_input("tokens", self.tokens)
            binding.bind_ortvalue_output("logits", self.logits)
            for name in self.states:
                binding.bind_ortvalue_input(name, before[name])
                binding.bind_ortvalue_output(f"{name}_next", after[name])
            self.turns.append(binding)

    def start(self, prompts: np.ndarray) -> np.ndarray:
        fed = {"tokens": np.ascontiguousarray(prompts.T.astype(np.int64)), **self.zeros}
        logits, *states = self.session.run(["logits", *(f"{name}_next" for name in self.states)], fed)
        for name, state in zip(self.states, states, strict=True):
            self.buffers[0][name].update_inplace(state)
        self.turn = 0
        return logits

    def step(self, tokens: np.ndarray) -> np.ndarray:
        self.tokens.update_inplace(tokens[None])
        self.session.run_with_iobinding(self.turns[self.turn])
        self.turn = 1 - self.turn
        return self.logits.numpy()

    def generate(self, prompts: np.ndarray, new: int, greedy: bool) -> np.ndarray:
        """New tokens (N, new)."""
        random = np.random.default_rng()
        logits = self.start(prompts)
        generated = []
        for k in range(new):
            if greedy:
                token = logits.argmax(-1)
            else:
                p = np.exp(logits - logits.max(-1, keepdims=True)).cumsum(-1)
                token = (p > random.random((len(p), 1), np.float32) * p[:, -1:]).argmax(-1)
            generated.append(token)
            if k + 1 < new:
                logits = self.step(token)
        return np.stack(generated, 1)


def measure(case: Case, plan: Plan) -> Iterator[Record]:
    use_threads(plan.threads)
    new = 64 if plan.quick else 256
    in_float32, peer = pair(case.size)
    ours, _ = pair(case.size)
    ours.lstm.compute_dtype = case.dtype
    vocabulary, prompts = case.size.vocabulary, case.prompts
    texts = [vocabulary.decode(row) for row in prompts]
    prompts_peer = torch.from_numpy(prompts).long()
    made: dict[str, Callable[[], np.ndarray]] = {
        "torch": lambda: torch_generate(peer, prompts_peer, new, case.greedy)
    }
    if "onnxruntime" in peers.chosen:
        onnx = OnnxLanguageModel(peer, case.N, plan.threads)
        made["onnxruntime"] = lambda: onnx.generate(prompts, new, case.greedy)

    sampled = ours.sample(texts, max_new_tokens=new, greedy=case.greedy)
    tokens = np.stack([one.tokens for one in sampled])
    difference = assert_close(
        f"{case.name}: log-probabilities",
        np.stack([one.log_probabilities for one in sampled]),
        torch_log_probabilities(peer, prompts, tokens),
        1e-5 if case.dtype == "float32" else 0.1,
    )
    if case.greedy and case.dtype == "float32":
        for name, work in made.items():
            if not np.array_equal(tokens, work()):
                raise AssertionError(f"{case.name}: greedy text differs from that of {name}")

    def ours_with(**options: object) -> Callable[[], list[str]]:
        return lambda: ours.generate(texts, max_new_tokens=new, greedy=case.greedy, **options)

    works: dict[str, Callable[[], object]] = {
        name: lambda work=work: [vocabulary.decode(row) for row in work()] for name, work in made.items()
    }
    own: dict[str, Callable[[], object]] = {}
    if case.dtype != "float32":
        own["float32"] = lambda: in_float32.generate(texts, max_new_tokens=new, greedy=case.greedy)
    if case.size is WORDS:
        own |= {name: ours_with(**options) for name, options in PROCESSORS.items()}
    records = alternate_all(ours_with(), works | own, repetitions=3 if plan.quick else 11)
    beside = beside_itself(records, own)
    for name, record in records.items():
        record |= {
            "benchmark": BENCHMARK,
            "case": case.name,
            "shape": {
                "N": case.N,
                "new": new,
                "H": case.size.hidden,
                "L": LAYERS,
                "V": len(vocabulary),
                "dtype": case.dtype,
            },
            "peer": name,
            "largest_difference": difference,
            "beside_itself": beside,
        }
        for side in ("ours", "peer"):
            record[f"{side}_tokens_per_second"] = case.N * new / record[f"{side}_seconds"]["median"]
        if case.N == 1:
            add_bandwidth(record, BYTES[case.dtype] * case.weights_per_step, new, plan.threads)
        yield record


def run(plan: Plan) -> Iterator[Record]:
    for case in CASES:
        if plan.wants(BENCHMARK, case.name):
            yield from measure(case, plan)
