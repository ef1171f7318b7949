"""A stand-in Emailgistics: its API and its webhooks on a real socket, written from the contract alone.

Imports nothing of the product, so that one misreading cannot hide in both. `python -m attachments.sandbox`
starts it; `process.running_sandbox` does so for a test.
"""
