"""A caller of sites, with the key in FORMGATE_KEY: python -m sites.ask ADDRESS GetSite|PublishSite SITE_ID."""

import os
import sys

import grpc
from sites import sites_pb2 as pb
from sites import sites_pb2_grpc


def main(address: str, method: str, site_id: str) -> None:
    """Call, and print the answer, or how it was refused."""
    metadata = (("authorization", f"Bearer {os.environ.get('FORMGATE_KEY', '')}"),)
    with grpc.insecure_channel(address) as channel:
        stub = sites_pb2_grpc.SitesStub(channel)
        try:
            if method == "GetSite":
                site = stub.GetSite(pb.GetSiteRequest(site_id=site_id), metadata=metadata, timeout=10)
                print(f"{site.title}, {'published' if site.published else 'not published'}")
            else:
                stub.PublishSite(pb.PublishSiteRequest(site_id=site_id), metadata=metadata, timeout=10)
                print("published")
        except grpc.RpcError as error:
            print(f"{error.code().name}: {error.details()}")


if __name__ == "__main__":
    main(*sys.argv[1:4])
