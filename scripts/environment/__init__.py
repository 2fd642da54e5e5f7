"""The steps of ``scripts/setup_env.py``; standard library only, because nothing is installed yet."""
