"""Stand-in for keystoneauth1: a password is right or not."""

from __future__ import annotations

from types import SimpleNamespace

from fakes import openstack


class Unauthorized(Exception):
    """Keystone does not take the credentials."""


class Password:
    """keystoneauth1.identity.v3.Password."""

    def __init__(self, auth_url: str, *, username: str, password: str, user_domain_name: str, unscoped: bool) -> None:
        self.login = (username, password)


class Session:
    """keystoneauth1.session.Session."""

    def __init__(self, auth: Password) -> None:
        self._auth = auth

    def get_token(self) -> str:
        if not openstack.keystone.knows(*self._auth.login):
            raise Unauthorized
        return "token"


exceptions = SimpleNamespace(Unauthorized=Unauthorized)
session = SimpleNamespace(Session=Session)
identity = SimpleNamespace(v3=SimpleNamespace(Password=Password))
