"""Reading adapters as PEFT writes them."""
