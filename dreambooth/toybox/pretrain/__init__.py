"""How the toybox's models were trained: `python -m dreambooth.toybox.pretrain`."""
