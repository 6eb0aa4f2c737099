"""Record n-best lists of Hugging Face's beam search: python tests/golden/record_beam.py (needs transformers)

The model is a table: the logits after tokens ... a, b are TABLE[a, b].
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers.modeling_outputs import CausalLMOutput

V, STOP = 7, 0
PROMPTS = [[1, 2], [5, 3, 3, 6, 4]]
CASES = [
    {},
    {"num_beams": 1},
    {"num_beams": 2, "length_penalty": 0.0},
    {"num_beams": 3, "length_penalty": 2.0},
    {"num_beams": 5, "length_penalty": -1.0},
    {"num_beams": 3, "early_stopping": True},
    {"num_beams": 3, "early_stopping": "never"},
    {"num_beams": 3, "early_stopping": "never", "length_penalty": -0.5},
    {"num_beams": 3, "early_stopping": "never", "length_penalty": 1.7},
    {"min_new_tokens": 4},
    {"min_new_tokens": 3, "early_stopping": True},
    {"bad_words_ids": [[3], [5]]},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 1, "max_new_tokens": 4, "num_beams": 3},
    {"repetition_penalty": 1.6},
    {"repetition_penalty": 0.5},
    {"eos_token_id": [0, 4]},
    {"eos_token_id": [0, 4], "early_stopping": True, "num_beams": 2},
    {"eos_token_id": None},
]


class Config(transformers.PretrainedConfig):
    model_type = "table"


class Table(transformers.PreTrainedModel, transformers.GenerationMixin):
    config_class = Config

    def __init__(self, config, table):
        super().__init__(config)
        self.table = torch.nn.Parameter(torch.from_numpy(table))
        self.post_init()

    def forward(self, input_ids, attention_mask=None, **kwargs):
        after = torch.cat([input_ids[:, :1], input_ids[:, :-1]], 1)
        return CausalLMOutput(logits=self.table[after, input_ids])

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        return {"input_ids": input_ids}


def main():
    table = (2 * np.random.default_rng(5).standard_normal((V, V, V))).astype(np.float32)
    table[..., STOP] += 1
    model = Table(Config(vocab_size=V, num_hidden_layers=1), table.copy())
    results = []
    for case in CASES:
        options = {"num_beams": 4, "max_new_tokens": 9, "eos_token_id": STOP} | case
        options["num_return_sequences"] = options["num_beams"]
        for prompt in PROMPTS:
            output = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                pad_token_id=V - 1,
                do_sample=False,
                use_cache=False,
                output_scores=True,
                return_dict_in_generate=True,
                **options,
            )
            lengths = (output["beam_indices"] >= 0).sum(1) if options["num_beams"] > 1 else None
            sequences = output["sequences"][:, len(prompt) :].tolist()
            results.append(
                {
                    "options": options,
                    "prompt": prompt,
                    "tokens": [
                        ids if lengths is None else ids[: lengths[j]] for j, ids in enumerate(sequences)
                    ],
                    "scores": output["sequences_scores"].tolist() if lengths is not None else None,
                }
            )
    contents = {"transformers": transformers.__version__, "table": table.tolist(), "results": results}
    (Path(__file__).parent / "beam.json").write_text(json.dumps(contents) + "\n")


if __name__ == "__main__":
    main()
