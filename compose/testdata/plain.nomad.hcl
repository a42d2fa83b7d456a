job "plain" {
  group "app" {
    task "app" {
      driver = "raw_exec"

      config {
        command = "/usr/bin/app"
      }

      env {
        PORT = "8080"
      }
    }
  }
}
