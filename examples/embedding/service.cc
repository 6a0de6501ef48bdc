// A small HTTP service: each of its threads asks the one engine, and their requests step together.
//
//     service BUNDLE [PORT] [HOST]
//     curl --data-urlencode text="It works." http://127.0.0.1:8080/tasks/mood
//
// The fields of a task are the fields of the form. The answer comes as a whole. `plc serve` is the
// server for real use, with limits, metrics and more routes.
#include <cstdlib>
#include <iostream>
#include <string>

#define CPPHTTPLIB_FORM_URL_ENCODED_PAYLOAD_MAX_LENGTH (1 << 20)  // bytes of a form; else 8,192
#include <httplib.h>
#include <plc_runtime.hpp>

int main(int count, char** arguments) {
  if (count < 2) return std::cerr << "usage: " << arguments[0] << " BUNDLE [PORT] [HOST]\n", 2;
  auto engine = plc_runtime::Engine::open(arguments[1]);
  if (!engine) return std::cerr << engine.error().message << "\n", 1;

  httplib::Server server;
  server.set_payload_max_length(1 << 20);
  server.Get("/tasks", [&](const httplib::Request&, httplib::Response& response) {
    std::string names;
    for (const std::string& name : engine->tasks()) names += name + "\n";
    response.set_content(names, "text/plain; charset=utf-8");
  });
  server.Post(R"(/tasks/([\w-]+))", [&](const httplib::Request& given, httplib::Response& response) {
    plc_runtime::Request request(given.matches[1]);
    for (const auto& [name, text] : given.params) request.field(name, text);
    std::string answer;
    const auto done = engine->generate(request, [&](std::string_view piece) { answer += piece; });
    if (!done) {
      response.status = done.error().status == PLC_ERROR_REQUEST ? 400 : 500;
      answer = done.error().message;
    }
    response.set_content((done ? done->text : answer) + "\n", "text/plain; charset=utf-8");
  });
  const int port = count > 2 ? std::atoi(arguments[2]) : 8080;
  const std::string host = count > 3 ? arguments[3] : "127.0.0.1";
  if (port < 1 || port > 65535) return std::cerr << arguments[2] << " is no port: 1 to 65535\n", 2;
  // By itself the server would share its port with another process.
  server.set_socket_options([](socket_t socket) {
    const int yes = 1;
    ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  });
  if (!server.bind_to_port(host.c_str(), port))
    return std::cerr << "cannot listen on " << host << " port " << port << ": choose another one\n", 1;
  std::cerr << "http://" << host << ":" << port << "/tasks\n";
  return server.listen_after_bind() ? 0 : 1;
}
