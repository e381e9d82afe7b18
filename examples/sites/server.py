"""Sites, with gRPC: python -m sites.server ADDRESS."""

import asyncio
import sys

import grpc
from sites import sites_pb2 as pb
from sites import sites_pb2_grpc

from formgate import AsyncClient
from formgate.middleware.grpc import FormgateAioInterceptor, Method

RULES = [
    Method("/sites.Sites/GetSite", permissions=["sites.read"], resources=["sites/{site_id}"]),
    Method("/sites.Sites/PublishSite", permissions=["sites.publish"], resources=["sites/{site_id}"]),
]

published: set[str] = set()


class Sites(sites_pb2_grpc.SitesServicer):
    """Keeps sites in memory."""

    async def GetSite(  # noqa: D102, N802 - the proto says it
        self,
        request: pb.GetSiteRequest,
        context: object,  # noqa: ARG002 - not needed
    ) -> pb.GetSiteResponse:
        return pb.GetSiteResponse(title=f"Site {request.site_id}", published=request.site_id in published)

    async def PublishSite(  # noqa: D102, N802 - the proto says it
        self,
        request: pb.PublishSiteRequest,
        context: object,  # noqa: ARG002 - not needed
    ) -> pb.PublishSiteResponse:
        published.add(request.site_id)
        return pb.PublishSiteResponse()


async def main(address: str) -> None:
    """Serve until the end."""
    async with AsyncClient(timeout=2) as client:
        server = grpc.aio.server(interceptors=[FormgateAioInterceptor(client, RULES)])
        sites_pb2_grpc.add_SitesServicer_to_server(Sites(), server)
        server.add_insecure_port(address)
        await server.start()
        await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
