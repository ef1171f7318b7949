"""How this product talks to Prefect's API. Knows Prefect and the foundation, and nothing else of the product."""
