"""The metadata client against our fake service."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from agent import clock
from agent.errors import SettingsError
from agent.host.metadata import Instance, MetadataClient, MetadataUnavailable
from tests.fakes.metadata_service import Endpoint, FakeMetadataService


@pytest.fixture
def service() -> Iterator[FakeMetadataService]:
    with FakeMetadataService() as fake:
        yield fake


def test_instance_is_read_whole(service: FakeMetadataService) -> None:
    assert MetadataClient(service.url).instance() == Instance(
        id="i-0fa4e000000000001",
        ami_id="ami-0fa4e000000000001",
        type="m5.large",
        availability_zone="eu-west-1a",
        region="eu-west-1",
        local_ipv4="10.0.1.7",
        hostname="ip-10-0-1-7.eu-west-1.compute.internal",
    )


def test_one_token_serves_many_requests(service: FakeMetadataService) -> None:
    client = MetadataClient(service.url)
    client.instance()
    client.instance()
    assert service.count("PUT") == 1
    assert {status for _, _, status in service.requests} == {200}


def test_token_is_replaced_before_it_ends(service: FakeMetadataService) -> None:
    client = MetadataClient(service.url, token_ttl_s=1)
    deadline = clock.Deadline.after(10)
    while service.count("PUT") < 3 and not deadline.is_passed:
        client.get("meta-data/instance-id")
    assert service.count("PUT") >= 3
    assert 401 not in {status for _, _, status in service.requests}


def test_refused_token_is_replaced_once(service: FakeMetadataService) -> None:
    client = MetadataClient(service.url)
    client.get("meta-data/ami-id")
    service.forget_tokens()
    assert client.get("meta-data/ami-id") == "ami-0fa4e000000000001"
    assert [status for _, _, status in service.requests] == [200, 200, 401, 200, 200]


def test_missing_document_is_none(service: FakeMetadataService) -> None:
    client = MetadataClient(service.url)
    assert client.get("meta-data/nothing") is None
    assert client.spot_action() is None
    assert client.target_lifecycle_state() is None
    assert client.user_data() is None
    assert client.tags() == {}


def test_tags_keep_colons_blanks_and_lines_of_values(service: FakeMetadataService) -> None:
    tags = {"build-agent:queues": "a, b", "Name": "blue one", "a/b+c=d@e": "x\ny", "empty": ""}
    service.set_tags(tags)
    assert MetadataClient(service.url).tags() == tags


def test_tag_removed_between_list_and_read_is_left_out(service: FakeMetadataService) -> None:
    service.set_tags({"Name": "blue", "gone": "soon"})
    del service.documents["meta-data/tags/instance/gone"]
    assert MetadataClient(service.url).tags() == {"Name": "blue"}


def test_spot_notice_is_read(service: FakeMetadataService) -> None:
    service.set_spot_action("terminate", at="2030-05-06T07:08:09Z")
    notice = MetadataClient(service.url).spot_action()
    assert notice is not None
    assert notice.action == "terminate"
    assert notice.at == datetime(2030, 5, 6, 7, 8, 9, tzinfo=UTC)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"action":"stop"}', '{"action":"stop","time":"soon"}'])
def test_unreadable_spot_notice_is_an_error_not_silence(service: FakeMetadataService, text: str) -> None:
    service.documents["meta-data/spot/instance-action"] = text
    with pytest.raises(MetadataUnavailable, match="spot notice"):
        MetadataClient(service.url).spot_action()


def test_lifecycle_state_and_user_data_are_read(service: FakeMetadataService) -> None:
    service.set_target_lifecycle_state("Terminated")
    service.set_user_data("queues = ['a']\n")
    client = MetadataClient(service.url)
    assert client.target_lifecycle_state() == "Terminated"
    assert client.user_data() == "queues = ['a']\n"


def test_proxies_of_the_environment_are_not_used(
    service: FakeMetadataService, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    assert MetadataClient(service.url).get("meta-data/local-ipv4") == "10.0.1.7"


def test_lost_token_answer_names_the_hop_limit_soon(service: FakeMetadataService) -> None:
    service.endpoint = Endpoint.TOO_MANY_HOPS
    begin = clock.mono()
    with pytest.raises(MetadataUnavailable, match="HttpPutResponseHopLimit"):
        MetadataClient(service.url, timeout_s=0.2).instance()
    assert clock.mono() - begin < 5


def test_switched_off_endpoint_says_what_to_do(service: FakeMetadataService) -> None:
    service.endpoint = Endpoint.DISABLED
    with pytest.raises(MetadataUnavailable, match="HttpEndpoint"):
        MetadataClient(service.url).instance()


def test_server_fault_is_retriable(service: FakeMetadataService) -> None:
    client = MetadataClient(service.url)
    client.instance()
    service.endpoint = Endpoint.BROKEN
    with pytest.raises(MetadataUnavailable, match="500") as caught:
        client.spot_action()
    assert caught.value.is_retriable
    service.endpoint = Endpoint.ENABLED
    assert client.spot_action() is None


def test_nobody_listening_is_unavailable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(MetadataUnavailable, match="api/token"):
            MetadataClient(url).instance()


def test_answer_without_instance_id_is_unavailable(service: FakeMetadataService) -> None:
    service.documents["meta-data/instance-id"] = " "
    with pytest.raises(MetadataUnavailable, match="instance-id"):
        MetadataClient(service.url).instance()


def test_endless_answer_is_refused(service: FakeMetadataService) -> None:
    service.set_user_data("x" * 100_000)
    with pytest.raises(MetadataUnavailable, match="over 65536"):
        MetadataClient(service.url).user_data()


@pytest.mark.parametrize(
    "url",
    ["https://169.254.169.254", "169.254.169.254", "http://", "http://h/x", "http://h:x", "http://h:99999"],
)
def test_other_address_is_a_settings_error(url: str) -> None:
    with pytest.raises(SettingsError, match="metadata_url"):
        MetadataClient(url)


def test_ipv6_address_is_taken_apart() -> None:
    client = MetadataClient("http://[fd00:ec2::254]")
    assert (client._host, client._port) == ("fd00:ec2::254", 80)
