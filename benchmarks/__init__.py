"""Speed of fusedlstm beside a peer in the same process: ``python -m benchmarks --help``."""
