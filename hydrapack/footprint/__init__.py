"""What task heads take on a phone, against adapters apart, and whether that fits the budget."""
