"""LSTM encoder and decoder: dates as people write them to dates as computers do, character by character.

The encoder's last states are the context vector: all that the decoder knows of the date. It puts out a
softmax over characters at every step, and is fed the character that came out.
"""

from datetime import date, timedelta

import numpy as np

from fusedlstm import Seq2Seq
from fusedlstm.data import Tokenizer, TokenizerPair

rng = np.random.default_rng(0)
days = [date(1950, 1, 1) + timedelta(int(day)) for day in rng.permutation(36500)]  # a hundred years, shuffled
pairs = [(day.strftime("%d %B %Y").lstrip("0").lower(), day.isoformat()) for day in days]
training, test = pairs[:3000], pairs[-500:]

tokenizers = TokenizerPair(
    Tokenizer.from_lines([source for source, _ in training], "char"),
    Tokenizer.from_lines([target for _, target in training], "char"),
)
model = Seq2Seq(tokenizers, embedding_size=32, hidden_size=128, reverse_source=True)
history = model.fit(training, epochs=8, batch_size=32, lr=0.01, progress=False)
print(
    f"loss {history.epochs[0]['train_loss']:.3f} -> {history.epochs[-1]['train_loss']:.3f} nats per character"
)

answers = model.translate([source for source, _ in test])
right = sum(answer == target for answer, (_, target) in zip(answers, test, strict=True))
print(f"{right} of {len(test)} new dates right")
for (source, _), answer in zip(test[:5], answers[:5], strict=True):
    print(f"{source:>18} -> {answer}")
