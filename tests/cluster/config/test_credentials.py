"""Credentials in URIs are detected in every common form, and plain URIs are accepted."""

import pytest

from cluster.config.credentials import refusals_in
from trainer.storage.objects.credentials import refusal_of

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfi"

HOLDS = [
    f"s3://AKIAEXAMPLE:{SECRET}@bucket/events/*.parquet",
    f"s3://AKIAEXAMPLE:{SECRET.replace('/', '%2F')}@bucket/events",
    "s3://AKIAEXAMPLE@bucket/events",
    f"S3://AKIAEXAMPLE:{SECRET}@bucket/events",
    f"s3://bucket/events?region=eu-west-1&secret_key={SECRET}",
    f"s3://bucket/events?access_key=AKIA&secret_key={SECRET}",
    f"s3://bucket/events?session_token={SECRET}",
    f"s3://bucket/*?secret_key={SECRET}",
    f"abfs://container@account.dfs.core.windows.net/logs?account_key={SECRET}",
    f"abfss://account:{SECRET}@container/logs",
    f"hdfs://me:{SECRET}@host:9000/logs",
    f"https://host/logs?sig={SECRET}",
    f"gs://bucket/logs?access_token={SECRET}",
]
PLAIN = [
    "events/*.parquet",
    "s3://bucket/events/2024-01-01T12:00/a@b.parquet",
    "s3://bucket/events?region=eu-west-1&endpoint_override=localhost:9000&scheme=http",
    "gs://anonymous@bucket/events",
    "hdfs://me@host:9000/logs?replication=1",
    "abfs://container@account.dfs.core.windows.net/logs",
    "ray://127.0.0.1:10001",
    "http://[::1]:8265/x",
    "a:b@c",
    "C://logs",
    "",
]


@pytest.mark.parametrize("uri", HOLDS)
def test_credentials_are_refused_and_not_repeated(uri):
    why = refusal_of(uri)
    assert why is not None
    assert "take them out" in why
    assert SECRET[:12] not in why
    if uri.lower().startswith("s3"):
        assert "AWS_ACCESS_KEY_ID" in why
        assert "AKIA" not in why


@pytest.mark.parametrize("uri", PLAIN)
def test_a_uri_without_credentials_is_accepted(uri):
    assert refusal_of(uri) is None


def test_every_text_of_nested_values_is_checked():
    values = {"logs": {"path": ["a", HOLDS[0]], "items": {"path": HOLDS[3]}}, "run": {"seed": 1, "dir": "s3://b/c"}}
    assert [line.split(":")[0] for line in refusals_in(values)] == ["logs.path", "logs.items.path"]
