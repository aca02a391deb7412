"""Who is asking, and may they: accounts, passwords, API keys, sessions, the gateway's directory, limits and quotas."""
