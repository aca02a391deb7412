"""What needs PyTorch (extra ``torch``): attacks, hardening, private training. Only ``app`` imports it, when it is asked."""
