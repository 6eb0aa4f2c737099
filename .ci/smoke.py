"""What the built wheel must do with only its declared dependencies: train, save, load, generate."""

import pathlib
import subprocess
import sys
import sysconfig
import tempfile

import numpy as np

import fusedlstm

assert pathlib.Path(sys.prefix) in pathlib.Path(fusedlstm.__file__).parents, fusedlstm.__file__
print(f"fusedlstm {fusedlstm.__version__} from {fusedlstm.__file__}: {fusedlstm.isa()}")

layer = fusedlstm.nn.LSTM(3, 5)
assert layer(np.zeros((2, 4, 3), np.float32)).shape == (2, 4, 5)

command = str(pathlib.Path(sysconfig.get_path("scripts")) / "fusedlstm")
with tempfile.TemporaryDirectory() as folder:
    text, model = pathlib.Path(folder) / "text.txt", pathlib.Path(folder) / "model.safetensors"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    sizes = ["--layers", "1", "--hidden", "32", "--batch", "8", "--window", "32", "--epochs", "2"]
    subprocess.run([command, "train", str(text), "-o", str(model), *sizes], check=True)
    generated = subprocess.run(
        [command, "generate", str(model), "--prompt", "the "], check=True, capture_output=True, text=True
    ).stdout
    assert generated.startswith("the "), generated
    print(generated[:80].splitlines()[0])
print("the installed wheel works")
