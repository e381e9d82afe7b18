"""What is common to the gateways that ask Formgate: what a route requires, of which request, and what is told back."""
