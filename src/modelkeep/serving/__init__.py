"""Serving: the Open Inference Protocol, validation against the model's own signature, and the audit log."""
