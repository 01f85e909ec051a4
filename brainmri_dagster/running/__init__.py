"""How one stage runs: its plan, record, inputs and state, and the processes behind it."""
