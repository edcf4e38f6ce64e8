"""Login at the loopback Hub by OAuth, as a Space's visitors do it: authorisation code, signed identity, scopes."""

import base64
import html
import secrets
import time
from urllib.parse import urlencode

from joserfc import jwt
from joserfc.jwk import RSAKey

from tests.hub_wire import RefusalError, html_page, route

APP = "dreambooth-studio"  # the application that asks for the login, and that the tokens of `add_user` belong to
HOUR = 3600  # seconds
SECRET = "no-secret"  # of that application


class Login:
    """The routes of the login, for the Hub's handler."""

    @route("GET", "/.well-known/openid-configuration")
    def openid(self):
        oauth = f"{self.hub.url}/oauth"
        return {
            "issuer": self.hub.url,
            "authorization_endpoint": f"{oauth}/authorize",
            "jwks_uri": f"{oauth}/jwks",
            "token_endpoint": f"{oauth}/token",
            "userinfo_endpoint": f"{oauth}/userinfo",
            "response_types_supported": ["code"],
            "id_token_signing_alg_values_supported": ["RS256"],
        }

    @route("GET", "/oauth/authorize")
    def authorize(self):
        wish = {name: values[0] for name, values in self.query.items()}
        if wish.get("client_id") != APP or wish.get("response_type") != "code":
            raise RefusalError(400, "Unknown application")
        user = wish.get("as") or (self.access and self.access.user) or self.hub.login
        if user not in self.hub.orgs:
            names = "".join(f'<p><a href="{html.escape(self.path)}&as={n}">Log in as {n}</a>' for n in self.hub.orgs)
            return html_page("Log in", f"<h1>Log in</h1><p>to use: {html.escape(wish.get('scope', ''))}{names}")
        code, cookie = secrets.token_hex(16), secrets.token_hex(16)
        self.hub.logins[code], self.hub.cookies[cookie] = wish | {"user": user}, user
        back = wish["redirect_uri"]
        back += ("&" if "?" in back else "?") + urlencode({"code": code, "state": wish.get("state", "")})
        return 302, b"", {"Location": back, "Set-Cookie": f"hub={cookie}; Path=/; HttpOnly"}

    @route("POST", "/oauth/token")
    def oauth_token(self):
        form = {name: values[0] for name, values in self.form().items()}
        secret = base64.b64encode(f"{APP}:{SECRET}".encode()).decode()
        login = self.hub.logins.pop(form.get("code"), None)
        if login is None or form.get("redirect_uri") != login["redirect_uri"]:
            return 400, b'{"error": "invalid_grant"}', {}
        if self.headers.get("Authorization") != f"Basic {secret}":
            return 401, b'{"error": "invalid_client"}', {}
        now, user, scope = int(time.time()), login["user"], login["scope"]
        token = self.hub.add_user(user, "hf_oauth_" + secrets.token_hex(20), tuple(scope.split()))
        claims = {"iss": self.hub.url, "aud": APP, "iat": now, "exp": now + 8 * HOUR, "nonce": login.get("nonce")}
        with self.hub.lock:
            self.hub.key = self.hub.key or RSAKey.generate_key(2048, auto_kid=True)
        identity = jwt.encode({"alg": "RS256", "kid": self.hub.key.kid}, claims | self._profile(user), self.hub.key)
        return {
            "access_token": token,
            "token_type": "bearer",
            "expires_in": 8 * HOUR,
            "scope": scope,
            "id_token": identity,
        }

    @route("GET", "/oauth/jwks")
    def oauth_keys(self):
        return {"keys": [self.hub.key.as_dict(private=False)]}

    @route("GET", "/oauth/userinfo")
    def userinfo(self):
        if self.access is None:
            raise RefusalError(401, "Invalid token")
        return self._profile(self.access.user)

    def _profile(self, user: str) -> dict:
        return {
            "sub": f"id-{user}",
            "name": user.title(),
            "preferred_username": user,
            "profile": f"{self.hub.url}/{user}",
            "picture": f"{self.hub.url}/avatars/{user}.svg",
        }
