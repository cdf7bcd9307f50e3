"""Tells people of flagged transactions at once: mail, chat, webhooks, by rules and in bounds."""
