"""The contract's services over the core, whatever wire carries them."""
