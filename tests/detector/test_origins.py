"""Addresses as they are shown: without users, passwords and keys."""

import pytest

from detector.origins import without_secrets

SECRET = "s3cretpw"


@pytest.mark.parametrize(
    "address",
    [
        f"http://user:{SECRET}@host:5000/path",
        f"https://{SECRET}@host",
        f"postgresql://user:p@{SECRET}/word@db:5432/mlflow",
        f"postgresql://user:123/{SECRET}@db/mlflow",
        f"postgresql+psycopg2://db/mlflow?user=me&sslpassword={SECRET}",
        f"mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3D{SECRET}",
        f"user:{SECRET}@host",
        f"https://host/path?token={SECRET}&x=1",
    ],
)
def test_no_secret_is_shown_alone_or_in_a_sentence(address: str) -> None:
    for text in (address, f"the tracking server {address} is away ('{address}'); waiting"):
        assert SECRET not in without_secrets(text)


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/#/models/NAME@best",
        "models:/NAME@best",
        "sqlite:////home/me/a:b@c/mlflow.db",
        "s3://bucket/folder",
        "table3@laptop+0a1b2c3d",
        "step 3: row a at 12:30, b@c",
    ],
)
def test_what_holds_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text
