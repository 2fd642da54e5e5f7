"""Addresses as messages show them (standard library)."""


def without_user(address: str) -> str:
    """The address with ``...`` in place of a user and password before its last ``@``."""
    before, at, host = address.rpartition("@")
    scheme = before.partition("://")[0] + "://" if "://" in before else ""
    return f"{scheme}...@{host}" if at else address
