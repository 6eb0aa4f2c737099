"""One character to a text: the first letter of a proverb to the rest of it.

The character is the first input, and from then on every character that comes out is the next input.
Training feeds the right character at every step (teacher forcing).
"""

from fusedlstm import OneToMany
from fusedlstm.data import Vocabulary

PROVERBS = [
    "Actions speak louder than words.\n",
    "Better late than never.\n",
    "Curiosity killed the cat.\n",
    "Don't count your chickens before they hatch.\n",
    "Easy come, easy go.\n",
    "Fortune favours the bold.\n",
    "Great minds think alike.\n",
    "Haste makes waste.\n",
]

vocabulary = Vocabulary.from_text("".join(PROVERBS), "char")
model = OneToMany(vocabulary=vocabulary, condition="first_step", hidden_size=128)
first = [proverb[0] for proverb in PROVERBS]
rest = [proverb[1:] for proverb in PROVERBS]  # of eight different lengths
history = model.fit(first, rest, epochs=150, lr=0.01, progress=False)
print(f"{len(vocabulary)} characters, loss {history.epochs[-1]['train_loss']:.4f} nats per character")

for character in first:
    print(character, "->", model.generate(character, steps=60, greedy=True, stop="\n"), end="")
