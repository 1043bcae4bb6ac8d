"""Where the state is: one contract, a readable memory store, and one shared by all workers."""
