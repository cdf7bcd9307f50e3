"""Entity state: records, the table that holds them in memory, the store that keeps them."""
