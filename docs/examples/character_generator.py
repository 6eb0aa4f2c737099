"""A character-level text generator: windows of 40 characters, 256 units, sampled.

The text is the start of a chapter of Python's reference, which comes with every Python.
"""

from pydoc_data.topics import topics

from fusedlstm import LanguageModel
from fusedlstm.data import Vocabulary

text = topics["compound"][:20000]
vocabulary = Vocabulary.from_text(text, "char")
model = LanguageModel(vocabulary, embedding_size=32, hidden_size=256, num_layers=1)
print(f"{len(text)} characters, {len(vocabulary)} different ones")

history = model.fit(text, epochs=5, batch_size=16, window=40, lr=0.01, progress=False)
for epoch in history.epochs:
    print(f"epoch {epoch['epoch']}: {epoch['train_loss']:.3f} nats per character")

for temperature in (0.2, 0.5, 1.0):
    prompt = text[1000:1040]
    print(f"\n--- temperature {temperature}, after {prompt!r}:")
    print(model.generate(prompt, max_new_tokens=200, temperature=temperature, seed=1))
