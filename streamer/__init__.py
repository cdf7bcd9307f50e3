"""The streaming door: Kafka to features to Triton to decisions, exactly once.

source -> segments -> alignment -> pipeline -> sink
                                   |  |  |
                          hot_state  |  side_logs (labels, terminal activity)
                                   scoring (Triton)
"""
