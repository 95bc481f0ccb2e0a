// Asio, included the one way that compiles: Asio 1.74 uses std::exchange without including <utility>.
#pragma once

#include <utility>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ip/v6_only.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>

namespace skerry::server {

namespace asio = boost::asio;

/// What belongs to one connection runs on its strand: one handler at a time, on any I/O thread.
using Strand = asio::strand<asio::io_context::executor_type>;
using StrandTimer =
    asio::basic_waitable_timer<std::chrono::steady_clock, asio::wait_traits<std::chrono::steady_clock>, Strand>;
using StrandSocket = asio::basic_stream_socket<asio::ip::tcp, Strand>;

}  // namespace skerry::server
