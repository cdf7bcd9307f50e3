"""The analysts' desk: cases, labels, alert channels and what people see of them."""
