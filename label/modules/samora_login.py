"""Login with a token of Keycloak: `MONAI_LABEL_AUTH_ENABLE=true`.

MONAI Label 0.8 decodes tokens without naming the algorithm, which PyJWT 2 refuses, so that every token is answered with
401. Here RS256, that of Keycloak, is the only one accepted, and a token needs an end.
"""

from __future__ import annotations

import functools
from typing import Any

import jwt
from fastapi import Depends, HTTPException
from monailabel.config import settings
from monailabel.endpoints.user.auth import User, get_public_key, oauth2_scheme


def user_of_token(token: str = Depends(oauth2_scheme)) -> User:
    """Return the user whose token a request carries.

    Raises:
        HTTPException: 401, the token is not valid.
    """
    key = get_public_key(settings.MONAI_LABEL_AUTH_REALM_URI)
    try:  # Keycloak's audience is not the client
        claims = jwt.decode(token, key, algorithms=["RS256"], options={"verify_aud": False, "require": ["exp"]})
    except jwt.InvalidTokenError as error:
        raise HTTPException(401, f"the token is not valid: {error}", {"WWW-Authenticate": "Bearer"}) from error
    roles = functools.reduce(_below, settings.MONAI_LABEL_AUTH_TOKEN_ROLES.split("#"), claims)
    return User(
        username=claims.get(settings.MONAI_LABEL_AUTH_TOKEN_USERNAME, "unknown"),
        email=claims.get(settings.MONAI_LABEL_AUTH_TOKEN_EMAIL),
        name=claims.get(settings.MONAI_LABEL_AUTH_TOKEN_NAME),
        roles=roles if isinstance(roles, list) else [],
    )


def _below(claims: Any, key: str) -> Any:
    return claims.get(key) if isinstance(claims, dict) else None
