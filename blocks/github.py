"""The block with which an agent clones the flows' code from GitHub."""

import re
import warnings

from prefect._internal.compatibility.deprecated import PrefectDeprecationWarning
from prefect.filesystems import GitHub
from pydantic.v1 import SecretStr

from blocks.environment import BadValue, Environment, required


def flow_code(environment: Environment) -> GitHub:
    """Return a block for `FLOW_CODE_REPOSITORY` at `FLOW_CODE_REFERENCE` (a branch or tag), with `FLOW_CODE_TOKEN` if any."""
    example = "https://github.com/nyc-taxi-flows/nyc-taxi-flows.git"
    repository = required(environment, "FLOW_CODE_REPOSITORY", example)
    token = environment.get("FLOW_CODE_TOKEN", "").strip()
    if not re.fullmatch(r"https://[\w.-]+(:\d+)?/[\w./~-]+|git@[\w.-]+:[\w./~-]+", repository):
        raise BadValue(
            f"FLOW_CODE_REPOSITORY is not the address of a repository such as {example}; "
            "a token belongs in FLOW_CODE_TOKEN, where it is hidden."
        )
    if token and not repository.startswith("https://"):
        raise BadValue("FLOW_CODE_TOKEN goes with a FLOW_CODE_REPOSITORY that begins with https://.")
    if not re.fullmatch(r"[\w:.~-]*", token):  # the token becomes part of a URL
        raise BadValue("FLOW_CODE_TOKEN has characters that are in no GitHub token.")
    reference = environment.get("FLOW_CODE_REFERENCE", "").strip() or None
    if reference and not re.fullmatch(r"\w[\w./-]*", reference):
        raise BadValue("FLOW_CODE_REFERENCE is not the name of a branch or tag.")
    with warnings.catch_warnings():
        # The block that replaces it is in prefect-github, which an agent with only Prefect installed cannot load.
        warnings.simplefilter("ignore", PrefectDeprecationWarning)
        # The token is the password. As a user name, it would appear in git's password prompt when GitHub refuses it.
        access_token = SecretStr(token if ":" in token else f"x-access-token:{token}") if token else None
        return GitHub(repository=repository, reference=reference, access_token=access_token, include_git_objects=False)
