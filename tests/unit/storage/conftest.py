"""An S3 of the tests' own: moto's server on a free port of this machine."""

import itertools

import pytest


@pytest.fixture(scope="session")
def s3_server():
    """The endpoint of a server, with credentials for it in the environment."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        yield f"http://{host}:{port}"
    server.stop()


_NUMBER = itertools.count()


@pytest.fixture
def bucket(s3_server):
    """The URI of a fresh bucket."""
    import boto3

    name = f"bucket-{next(_NUMBER)}"
    boto3.client("s3", endpoint_url=s3_server).create_bucket(Bucket=name)
    return f"s3://{name}"
