//! QueryRoute and QueryAssignment, and the addresses in them.
//!
//! Every queue names the same Endpoints, whoever leads: most SDKs never notice a changed address,
//! and a client that keeps its address keeps its connection. Any node forwards to the leader.
//!
//! | Field | Value |
//! |---|---|
//! | `broker.name` | the broker group |
//! | `broker.id` | 0: SDKs use no other |
//! | `broker.endpoints` | see [`RouteEndpoints`] |
//! | `permission` | READ_WRITE |
//! | `id` | 0..queues in routes and in assignments of groups with order; -1 ("any") in those without, and for lite topics |
//! | order | groups by name, queues by number |

use std::net::IpAddr;
use std::str::FromStr;

use ledgermq_proto::rocketmq::{
    Address, AddressScheme, Assignment, Broker, Endpoints, MessageQueue, MessageType, Permission,
    QueryAssignmentRequest, QueryAssignmentResponse, QueryRouteRequest, QueryRouteResponse, Resource,
};

use crate::codes::ok;
use crate::context::CallContext;
use crate::edge::Edge;
use crate::group_call::Refused;
use crate::topics::HostedTopic;
use crate::validate;

/// Queues listed per group. The server chooses the queue of a message, so a client needs only to
/// see that the group has some; the whole list of a large topic would exceed what SDKs can receive.
pub const ROUTE_QUEUES_PER_GROUP_MAX: u32 = 128;
pub const ENDPOINT_ADDRESSES_MAX: usize = 64;
const HOST_BYTES_MAX: usize = 255;

/// Which Endpoints routes name.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum RouteEndpoints {
    /// What the client itself uses: it is known to reach that.
    #[default]
    EchoAccessPoint,
    Fixed(Endpoints),
}

/// `echo`, `dns:host:port`, `ipv4:a:p,b:p` or `ipv6:[a]:p,[b]:p`.
impl FromStr for RouteEndpoints {
    type Err = RouteEndpointsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = |reason| RouteEndpointsError { text: text.to_owned(), reason };
        if text == "echo" {
            return Ok(Self::EchoAccessPoint);
        }
        let (scheme, list) = text.split_once(':').ok_or_else(|| error("has no scheme"))?;
        let scheme = match scheme {
            "dns" => AddressScheme::DomainName,
            "ipv4" => AddressScheme::IPv4,
            "ipv6" => AddressScheme::IPv6,
            _ => return Err(error("has an unknown scheme; known are echo, dns, ipv4 and ipv6")),
        };
        let addresses = list
            .split(',')
            .map(|address| AdvertisedAddress::from_str(address.trim()).map(|address| address.0))
            .collect::<Result<Vec<_>, _>>()?;
        if addresses.iter().any(|address| scheme_of(&address.host) != scheme) {
            return Err(error("names a host that does not fit its scheme"));
        }
        if scheme == AddressScheme::DomainName && addresses.len() != 1 {
            // The Java SDK refuses more than one.
            return Err(error("names several hosts; a dns endpoint takes one"));
        }
        if addresses.len() > ENDPOINT_ADDRESSES_MAX {
            return Err(error("names more than 64 addresses"));
        }
        Ok(Self::Fixed(Endpoints { scheme: scheme.into(), addresses }))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("route endpoints \"{text}\" {reason}")]
pub struct RouteEndpointsError {
    pub text: String,
    pub reason: &'static str,
}

/// `host:port`, where the host is a name, an IPv4 address, or an IPv6 address in brackets.
#[derive(Debug, Clone, PartialEq)]
pub struct AdvertisedAddress(Address);

impl AdvertisedAddress {
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self(Address { host: host.into(), port: i32::from(port) })
    }

    fn endpoints(&self) -> Endpoints {
        Endpoints { scheme: scheme_of(&self.0.host).into(), addresses: vec![self.0.clone()] }
    }
}

impl FromStr for AdvertisedAddress {
    type Err = RouteEndpointsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = |reason| RouteEndpointsError { text: text.to_owned(), reason };
        let (host, port) = text.rsplit_once(':').ok_or_else(|| error("has no port"))?;
        let port: u16 = port.parse().map_err(|_| error("has a port that is not within 1..=65535"))?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() || host.len() > HOST_BYTES_MAX {
            return Err(error("has an empty or overlong host"));
        }
        Ok(Self::new(host, port))
    }
}

impl Edge {
    pub(crate) async fn query_route(
        &self,
        context: &CallContext,
        request: &QueryRouteRequest,
    ) -> Result<QueryRouteResponse, Refused> {
        let topic = validate::topic(request.topic.as_ref())?;
        let hosted = self.locate(context, &topic).await?;
        let endpoints = self.endpoints_for(context, request.endpoints.as_ref());
        let message_queues = hosted
            .iter()
            .flat_map(|hosted| {
                let queues = hosted.description.queues.clamp(1, ROUTE_QUEUES_PER_GROUP_MAX);
                let endpoints = &endpoints;
                (0..queues).map(move |id| {
                    let id = i32::try_from(id).unwrap_or(i32::MAX);
                    message_queue(request.topic.clone(), hosted, id, endpoints.clone())
                })
            })
            .collect();
        Ok(QueryRouteResponse { status: Some(ok()), message_queues })
    }

    pub(crate) async fn query_assignment(
        &self,
        context: &CallContext,
        request: &QueryAssignmentRequest,
    ) -> Result<QueryAssignmentResponse, Refused> {
        let topic = validate::topic(request.topic.as_ref())?;
        let consumer_group = validate::consumer_group(request.group.as_ref())?;
        let hosted = self.locate(context, &topic).await?;
        let endpoints = self.endpoints_for(context, request.endpoints.as_ref());
        let in_order = self.consumer_group(context, &consumer_group).await.fifo;
        // Every member of the consumer group gets the same full list: leases share the messages out,
        // not assignments. Groups with order get every queue, because SDKs work through what one
        // assignment brings one message after the other.
        // Those of lite topics too, but a lite topic is no queue an SDK knows: one assignment for all.
        let is_lite = |hosted: &HostedTopic| hosted.description.message_type == MessageType::Lite;
        let queues_of = |hosted: &HostedTopic| match in_order && !is_lite(hosted) {
            true => {
                0..i32::try_from(hosted.description.queues.clamp(1, ROUTE_QUEUES_PER_GROUP_MAX))
                    .unwrap_or(i32::MAX)
            }
            false => -1..0,
        };
        let assignments = hosted
            .iter()
            .flat_map(|hosted| queues_of(hosted).map(move |queue| (hosted, queue)))
            .map(|(hosted, queue)| Assignment {
                message_queue: Some(message_queue(request.topic.clone(), hosted, queue, endpoints.clone())),
            })
            .collect();
        Ok(QueryAssignmentResponse { status: Some(ok()), assignments })
    }

    fn endpoints_for(&self, context: &CallContext, access_point: Option<&Endpoints>) -> Endpoints {
        let mut endpoints = match &self.shared.config.route_endpoints {
            RouteEndpoints::Fixed(endpoints) => endpoints.clone(),
            RouteEndpoints::EchoAccessPoint => {
                access_point.and_then(echo).unwrap_or_else(|| self.shared.config.advertised.endpoints())
            }
        };
        if context.language.takes_one_address_only() || endpoints.scheme() == AddressScheme::DomainName {
            endpoints.addresses.truncate(1);
        }
        endpoints
    }
}

fn message_queue(
    topic: Option<Resource>,
    hosted: &HostedTopic,
    id: i32,
    endpoints: Endpoints,
) -> MessageQueue {
    MessageQueue {
        topic,
        id,
        permission: Permission::ReadWrite.into(),
        broker: Some(Broker { name: hosted.group.as_str().to_owned(), id: 0, endpoints: Some(endpoints) }),
        accept_message_types: vec![hosted.description.message_type.into()],
    }
}

/// The client's own access point, fit to be given back; `None` if it is not.
fn echo(access_point: &Endpoints) -> Option<Endpoints> {
    let first = access_point.addresses.first()?;
    let usable = access_point.addresses.len() <= ENDPOINT_ADDRESSES_MAX
        && access_point.addresses.iter().all(|address| {
            !address.host.is_empty()
                && address.host.len() <= HOST_BYTES_MAX
                && (1..=65_535).contains(&address.port)
        });
    // A scheme must always be there: without one Java takes an address for a name.
    let scheme = match access_point.scheme() {
        AddressScheme::Unspecified => scheme_of(&first.host),
        given => given,
    };
    usable.then(|| Endpoints { scheme: scheme.into(), addresses: access_point.addresses.clone() })
}

fn scheme_of(host: &str) -> AddressScheme {
    match host.parse() {
        Ok(IpAddr::V4(_)) => AddressScheme::IPv4,
        Ok(IpAddr::V6(_)) => AddressScheme::IPv6,
        Err(_) => AddressScheme::DomainName,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn route_endpoints_are_read_and_wrong_ones_are_explained() {
        assert_eq!("echo".parse(), Ok(RouteEndpoints::EchoAccessPoint));
        let Ok(RouteEndpoints::Fixed(list)) = "ipv4:10.0.0.1:8081,10.0.0.2:8081".parse() else {
            panic!("a list of addresses");
        };
        assert_eq!((list.scheme(), list.addresses.len()), (AddressScheme::IPv4, 2));
        let Ok(RouteEndpoints::Fixed(v6)) = "ipv6:[::1]:8081".parse() else {
            panic!("an IPv6 address");
        };
        assert_eq!(v6.addresses[0].host, "::1");
        for wrong in ["dns:a:1,b:1", "ipv4:host:1", "dns:a", "dns:a:99999", "ftp:a:1", "nothing"] {
            assert!(wrong.parse::<RouteEndpoints>().is_err(), "{wrong}");
        }
    }
}
