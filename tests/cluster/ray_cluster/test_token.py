"""When the Jobs client sends a token."""

from cluster.ray_cluster.token import send_token_if_present


def test_a_token_that_is_here_is_sent(tmp_path):
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    environment: dict[str, str] = {}
    send_token_if_present(environment, tmp_path)
    assert environment == {"RAY_AUTH_MODE": "token"}


def test_a_token_in_the_environment_is_sent(tmp_path):
    environment = {"RAY_AUTH_TOKEN_PATH": "/elsewhere"}
    send_token_if_present(environment, tmp_path)
    assert environment["RAY_AUTH_MODE"] == "token"


def test_without_a_token_or_against_a_choice_nothing_changes(tmp_path):
    environment: dict[str, str] = {}
    send_token_if_present(environment, tmp_path)
    assert environment == {}
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    environment = {"RAY_AUTH_MODE": "disabled"}
    send_token_if_present(environment, tmp_path)
    assert environment == {"RAY_AUTH_MODE": "disabled"}
