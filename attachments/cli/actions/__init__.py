"""What the commands do. A command imports its action when it runs, so its help loads neither Prefect nor a store."""
