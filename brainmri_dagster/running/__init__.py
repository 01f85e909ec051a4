"""How a stage runs: its plan, record, inputs and state, and its processes."""
