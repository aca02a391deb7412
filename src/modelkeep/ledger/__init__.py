"""The transparency log: tiles, the sequencer, readers, proofs and the whole-log check."""
